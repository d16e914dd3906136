"""Which routers and experts an adapter moves, and by how much of their norm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from moegeo_cli.checkpoints.experts import find_expert_tensors
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.checkpoints.weights import WeightIndex

TRIED = 8  # experts of a layer whose weights are read; a model's are too many to read for a note


class Changed(Protocol):
    """A checkpoint's tensors with and without its adapter."""

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """With it."""

    def without_adapter(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """Without it."""


def measure_moves(
    index: WeightIndex, changed: Changed, touched: frozenset[str]
) -> list[dict[str, Any]]:
    """One entry a router and one a layer of experts that the adapter changes.

    Args:
        index: the checkpoint's tensors.
        changed: the same, with and without the adapter.
        touched: names of those that it changes.

    Returns:
        By layer: `part` ("router" or "experts"), `layer`, `relative` (Frobenius norm of the
        change over that of the weight without it), `experts` that were read for it and `of` how
        many that it changes; None for a router.
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


def say_moves(moves: Sequence[Mapping[str, Any]]) -> str:
    """The same in words."""
    words = []
    for part, name in (("router", "routers"), ("experts", "experts")):
        held = [m for m in moves if m["part"] == part]
        if not held:
            words.append(f"{name} stay as they are")
            continue
        sizes = [m["relative"] for m in held if m["relative"] is not None]
        layers = f"{name} of {len(held)} layer{'s' if len(held) > 1 else ''} move"
        range_ = f" by {min(sizes):.2g} to {max(sizes):.2g} of their norm" if sizes else ""
        tried = any(m["experts"] != m["of"] for m in held)
        words.append(f"{layers}{range_}{f' ({TRIED} experts a layer read)' if tried else ''}")
    return ", ".join(words)


def _entry(
    part: str, layer: int | None, relative: float | None, experts: int | None, of: int | None
) -> dict[str, Any]:
    return {"part": part, "layer": layer, "relative": relative, "experts": experts, "of": of}


def _spread(experts: Sequence[int]) -> list[int]:
    """At most `TRIED` of them, from first to last."""
    if len(experts) <= TRIED:
        return list(experts)
    return [experts[round(i * (len(experts) - 1) / (TRIED - 1))] for i in range(TRIED)]


def _relative(
    changed: Changed, tensors: Iterable[tuple[str, tuple[int, int] | None]]
) -> float | None:
    """Norm of the change over the norm of what is changed; None where that is zero."""
    change = weight = 0.0
    for name, rows in tensors:
        before = changed.without_adapter(name, rows).double()
        change += float(((changed.tensor(name, rows).double() - before) ** 2).sum())
        weight += float((before**2).sum())
    return float((change / weight) ** 0.5) if weight else None
