"""Layers with different numbers of experts, as pruning leaves them.

What counts is what the files hold: the rows of each router and the experts beside it. A config may
say one number, a list, or the number from before the pruning.

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
    """The architecture with each layer's own number of experts, where layers differ.

    Args:
        index: the checkpoint's tensors.
        architecture: what the config says.

    Returns:
        `architecture` itself where all layers have one number, or where the files do not tell.

    Raises:
        ShapeError: layers differ, and router, experts, K, groups or config contradict each other.
    """
    routers = [r for r in find_router_tensors(index, architecture) if r.main]
    rows = {r.layer: r.shape[0] for r in routers if r.layer is not None}
    if not _is_told(routers, architecture) or len(set(rows.values())) < 2:
        return architecture
    found = {layer: count for layer, count in sorted(rows.items()) if layer is not None}
    _check_files(index, routers)
    _check_choice(found, architecture)
    stated = architecture.experts_by_layer
    if stated is not None and dict(stated) != found:
        raise ShapeError(
            "config.json lists other numbers of experts than the files hold",
            found=f"config: {say_experts(dict(stated))}; files: {say_experts(found)}",
            hint="config.json and weights are of different models: copy them from one source",
        )
    note = f"layers have different numbers of experts: {say_experts(found)}"
    return replace(
        architecture,
        experts_by_layer=tuple(found.items()),
        notes=(*architecture.notes, note),
    )


def say_experts(counts: Mapping[int, int]) -> str:
    """Numbers of experts in words: "8 in layers 0, 2; 5 in layer 1"."""
    layers: dict[int, list[int]] = {}
    for layer, count in counts.items():
        layers.setdefault(count, []).append(layer)
    return "; ".join(
        f"{count} in layer{'s' if len(held) > 1 else ''} {', '.join(map(str, held[:8]))}"
        + (" …" if len(held) > 8 else "")
        for count, held in sorted(layers.items(), reverse=True)
    )


def _is_told(routers: Sequence[RouterTensors], architecture: Architecture) -> bool:
    """Whether a router has one row an expert, and is stored so that rows are told from columns."""
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
    """See that each router has as many rows as there are experts beside it."""
    held = find_expert_tensors(index, routers)
    for router in routers:
        experts = sorted(held[router.module].experts)
        if experts != list(range(router.shape[0])):
            raise ShapeError(
                f"{router.weight} does not fit the experts of its layer",
                found=f"{router.shape[0]} rows, and {len(experts)} experts in the files"
                + (f", numbered {experts[0]} to {experts[-1]}" if experts else ""),
                hint="number the experts that are left from 0, as the rows of the router",
                context={"tensor": router.weight},
            )


def _check_choice(found: Mapping[int, int], architecture: Architecture) -> None:
    """See that every layer can choose K experts, from groups of one size."""
    groups = architecture.selection.groups
    for layer, count in found.items():
        chosen = architecture.top_k_in(layer)
        if count < 2 or (chosen is not None and chosen > count):
            raise ShapeError(
                f"layer {layer} has too few experts to choose from",
                found=f"{count} experts, of which {chosen} are chosen ({say_experts(found)})",
                hint="`moegeo inspect` and `moegeo check` still describe the checkpoint",
            )
        if groups is not None and count % groups[0]:
            raise ShapeError(
                f"layer {layer}: its experts do not make groups of one size",
                found=f"{count} experts in {groups[0]} groups ({say_experts(found)})",
                hint="`moegeo inspect` and `moegeo check` still describe the checkpoint",
            )
