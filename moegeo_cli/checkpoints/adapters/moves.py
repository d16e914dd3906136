"""Measure by how much an adapter changes routers and experts, for a note in reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from moegeo_cli.checkpoints.experts import find_expert_tensors
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.checkpoints.weights import WeightIndex

MOST_READ = 8  # experts of a layer whose weights are read; reading all would take too long


class Changed(Protocol):
    """A checkpoint's tensors with and without its adapter."""

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A tensor, or some of its rows, with the adapter merged."""

    def without_adapter(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A tensor of the base model, or some of its rows, without the adapter."""


def measure_moves(
    index: WeightIndex, changed: Changed, touched: frozenset[str]
) -> list[dict[str, Any]]:
    """Measure the change of each router, and of the experts of each layer.

    Args:
        index: the checkpoint's tensors.
        changed: the same tensors, with and without the adapter.
        touched: names of the tensors that the adapter changes.

    Returns:
        By layer, one entry for each router and for each layer of experts that changes: `part`
        ("router" or "experts"), `layer`, `relative` (Frobenius norm of the change over that of
        the base model's weight), `experts` (number of experts read) and `of` (number of experts
        changed). The last two are None for a router.
    """
    routers = [r for r in find_router_tensors(index) if r.main]
    experts = find_expert_tensors(index, routers)
    found = []
    for router in routers:
        own = [n for n in (router.weight, router.bias, router.selection_bias) if n in touched]
        if own:
            relative = _relative(changed, [(n, None) for n in own if n is not None])
            found.append(_entry("router", router.layer, relative, None, None))
        moved = {
            expert: held
            for expert, tensors in experts[router.module].experts.items()
            if (held := [t for t in tensors if t.name in touched])
        }
        if moved:
            chosen = _spread(sorted(moved))
            tensors = [(t.name, t.rows) for expert in chosen for t in moved[expert]]
            relative = _relative(changed, tensors)
            found.append(_entry("experts", router.layer, relative, len(chosen), len(moved)))
    return found


def describe_moves(moves: Sequence[Mapping[str, Any]]) -> str:
    """The result of `measure_moves` in words."""
    words = []
    for part, name in (("router", "routers"), ("experts", "experts")):
        held = [m for m in moves if m["part"] == part]
        if not held:
            words.append(f"{name} stay as they are")
            continue
        sizes = [m["relative"] for m in held if m["relative"] is not None]
        layers = f"{name} of {len(held)} layer{'s' if len(held) > 1 else ''} move"
        range_ = f" by {min(sizes):.2g} to {max(sizes):.2g} of their norm" if sizes else ""
        some = any(m["experts"] != m["of"] for m in held)
        words.append(f"{layers}{range_}{f' ({MOST_READ} experts a layer read)' if some else ''}")
    return ", ".join(words)


def _entry(
    part: str, layer: int | None, relative: float | None, experts: int | None, of: int | None
) -> dict[str, Any]:
    return {"part": part, "layer": layer, "relative": relative, "experts": experts, "of": of}


def _spread(experts: Sequence[int]) -> list[int]:
    """At most `MOST_READ` of the experts, evenly spaced from first to last."""
    if len(experts) <= MOST_READ:
        return list(experts)
    return [experts[round(i * (len(experts) - 1) / (MOST_READ - 1))] for i in range(MOST_READ)]


def _relative(
    changed: Changed, tensors: Iterable[tuple[str, tuple[int, int] | None]]
) -> float | None:
    """Norm of the change over the norm of the base model's weights; None if the latter is 0."""
    change = weight = 0.0
    for name, rows in tensors:
        before = changed.without_adapter(name, rows).double()
        change += float(((changed.tensor(name, rows).double() - before) ** 2).sum())
        weight += float((before**2).sum())
    return float((change / weight) ** 0.5) if weight else None
