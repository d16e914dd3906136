"""Find the number of experts of each layer where layers differ, as after pruning.

The files count: the rows of each router and the experts beside it. A config may hold one number, a
list, or the number from before the pruning. The result completes what `architecture` read.

Legend: E experts, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.experts import find_expert_tensors
from moegeo_cli.checkpoints.routers import RouterTensors, find_router_tensors
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import ShapeError


def with_experts_by_layer(index: WeightIndex, architecture: Architecture) -> Architecture:
    """Add each layer's number of experts to an architecture where layers differ.

    Args:
        index: the checkpoint's tensors.
        architecture: the architecture by the config.

    Returns:
        `architecture` itself where all layers have the same number of experts, or where the
        files do not show the numbers.

    Raises:
        ShapeError: layers differ, and router, experts, K, groups or config contradict each other.
    """
    routers = [r for r in find_router_tensors(index, architecture) if r.main]
    rows = {r.layer: r.shape[0] for r in routers if r.layer is not None}
    if not _shows_counts(routers, architecture) or len(set(rows.values())) < 2:
        return architecture
    found = {layer: count for layer, count in sorted(rows.items()) if layer is not None}
    _check_files(index, routers)
    _check_choice(found, architecture)
    stated = architecture.experts_by_layer
    if stated is not None and dict(stated) != found:
        raise ShapeError(
            "config.json lists other numbers of experts than the files hold",
            found=f"config: {describe_counts(dict(stated))}; files: {describe_counts(found)}",
            hint="config.json and weights are of different models: copy them from one source",
        )
    note = f"layers have different numbers of experts: {describe_counts(found)}"
    return replace(
        architecture,
        experts_by_layer=tuple(found.items()),
        notes=(*architecture.notes, note),
    )


def describe_counts(counts: Mapping[int, int]) -> str:
    """Numbers of experts by layer in words: "8 in layers 0, 2; 5 in layer 1"."""
    layers: dict[int, list[int]] = {}
    for layer, count in counts.items():
        layers.setdefault(count, []).append(layer)
    return "; ".join(
        f"{count} in layer{'s' if len(held) > 1 else ''} {', '.join(map(str, held[:8]))}"
        + (" …" if len(held) > 8 else "")
        for count, held in sorted(layers.items(), reverse=True)
    )


def _shows_counts(routers: Sequence[RouterTensors], architecture: Architecture) -> bool:
    """Whether the router weights show the number of experts of each layer.

    They do if every weight is (experts, hidden) and not square, with one router a layer.
    """
    width = architecture.hidden
    layers = [r.layer for r in routers]
    return (
        architecture.router_rows == architecture.experts
        and not architecture.zero_experts
        and width is not None
        and all(r.shape[1] == width and r.shape[0] != width for r in routers)
        and None not in layers
        and len(set(layers)) == len(layers)
    )


def _check_files(index: WeightIndex, routers: Sequence[RouterTensors]) -> None:
    """Check that each router has as many rows as its layer has experts."""
    held = find_expert_tensors(index, routers)
    for router in routers:
        experts = sorted(held[router.module].experts)
        if experts != list(range(router.shape[0])):
            raise ShapeError(
                f"{router.weight} does not fit the experts of its layer",
                found=f"{router.shape[0]} rows, and {len(experts)} experts in the files"
                + (f", numbered {experts[0]} to {experts[-1]}" if experts else ""),
                hint="number the remaining experts from 0, in the order of the router's rows",
                context={"tensor": router.weight},
            )


def _check_choice(found: Mapping[int, int], architecture: Architecture) -> None:
    """Check that every layer has K experts to select, and groups of equal size."""
    groups = architecture.selection.groups
    for layer, count in found.items():
        chosen = architecture.top_k_in(layer)
        if count < 2 or (chosen is not None and chosen > count):
            raise ShapeError(
                f"layer {layer} has too few experts to choose from",
                found=f"{count} experts, of which {chosen} are chosen ({describe_counts(found)})",
                hint="`moegeo inspect` and `moegeo check` still describe the checkpoint",
            )
        if groups is not None and count % groups[0]:
            raise ShapeError(
                f"layer {layer}: its experts do not form groups of equal size",
                found=f"{count} experts in {groups[0]} groups ({describe_counts(found)})",
                hint="`moegeo inspect` and `moegeo check` still describe the checkpoint",
            )
