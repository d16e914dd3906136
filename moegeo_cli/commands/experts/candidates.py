"""Ranks experts to merge or to prune, best candidates first, each with its reason.

Legend: E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moegeo_cli.commands.experts.layers import MeasuredLayer
from moegeo_cli.commands.experts.record import MergeCandidate, PruneCandidate
from moegeo_cli.records import layer_name

LISTED = 10
NO_FUNCTIONS = "the experts were not measured as functions"
Pair = tuple[int, int, int]  # position of the layer, and two experts
Single = tuple[int, int]  # position of the layer, and an expert


def rank_pairs(layers: Sequence[MeasuredLayer], matrix: str) -> list[Pair]:
    """All pairs of experts with a value, largest first.

    Args:
        layers: the measured layers.
        matrix: "alignment", "overlap" or "weight cosine".
    """
    scored: list[tuple[float, Pair]] = []
    for place, layer in enumerate(layers):
        values_EE = pair_values(layer, matrix)
        if values_EE is None:
            continue
        for a, b in zip(*np.triu_indices(len(values_EE), 1), strict=True):
            if np.isfinite(values_EE[a, b]):
                scored.append((float(values_EE[a, b]), (place, int(a), int(b))))
    return [pair for _, pair in sorted(scored, key=lambda entry: (-entry[0], entry[1]))]


def pair_values(layer: MeasuredLayer, matrix: str) -> np.ndarray | None:
    """The E × E values by which pairs are ranked; None if the layer has none."""
    if matrix == "overlap":
        return layer.overlap_EE
    return layer.alignment_EE if matrix == "alignment" else layer.weight_cosine_EE


def merge_candidates(layers: Sequence[MeasuredLayer], count: int) -> tuple[MergeCandidate, ...]:
    """The pairs of experts with the highest alignment, over all layers.

    Args:
        layers: the measured layers, each with its best `count` pairs.
        count: number of pairs to return at most.
    """
    found = [(place, pair) for place, layer in enumerate(layers) for pair in layer.merges]
    found.sort(key=lambda entry: (-(entry[1].alignment.value or 0.0), entry[0], entry[1].experts))
    return tuple(pair for _, pair in found[:count])


def prune_scores(layer: MeasuredLayer) -> np.ndarray | str:
    """The prune score of each expert: routed mass × output norm × Fisher trace.

    Each factor is divided by its mean over the layer. An expert without tokens has score 0.

    Returns:
        Shape (E,); or, as text, why the layer has no scores.
    """
    parts = _prune_parts(layer)
    return parts if isinstance(parts, str) else np.asarray(np.prod(parts, axis=0))


def _prune_parts(layer: MeasuredLayer) -> list[np.ndarray] | str:
    """The three factors of the prune score, each divided by its mean; or why one is missing.

    Experts without tokens count as 0, in the means too.
    """
    if layer.alignment_EE is None:
        return NO_FUNCTIONS
    if isinstance(layer.fisher_trace_E, str):
        return layer.fisher_trace_E
    norm_E = np.array([e.output_norm or 0.0 for e in layer.record.expert])
    found = []
    for name, part_E in (
        ("combine weight", layer.mass_E), ("output norm", norm_E),
        ("Fisher trace", layer.fisher_trace_E),
    ):  # fmt: skip
        own_E = np.where(layer.tokens_E > 0, part_E, 0.0)
        if not own_E.sum() > 0:
            return f"the {name} of every expert is 0"
        found.append(own_E / own_E.mean())
    return found


def notes_on_unranked(layers: Sequence[MeasuredLayer]) -> list[str]:
    """Notes for layers whose functions were measured but whose experts have no prune score."""
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        score_E = prune_scores(layer)
        if isinstance(score_E, str) and score_E != NO_FUNCTIONS:
            record = layer.record
            by_reason.setdefault(score_E, []).append(layer_name(record.layer, record.router))
    return [
        f"no prune candidates in layer{'s' if len(names) > 1 else ''} {', '.join(names)}: {reason}"
        for reason, names in by_reason.items()
    ]


def rank_singles(layers: Sequence[MeasuredLayer]) -> list[Single]:
    """All experts by their prune score, lowest first."""
    scored = [
        (float(score), (place, e))
        for place, layer in enumerate(layers)
        if not isinstance(score_E := prune_scores(layer), str)
        for e, score in enumerate(score_E)
    ]
    return [single for _, single in sorted(scored)]


def rank_singles_by(layers: Sequence[MeasuredLayer], matrix: str) -> list[Single]:
    """All experts, ordered by similarity to their most similar expert, highest first.

    Args:
        layers: the measured layers.
        matrix: "alignment", "overlap" or "weight cosine".
    """
    scored: list[tuple[float, Single]] = []
    for place, layer in enumerate(layers):
        values_EE = pair_values(layer, matrix)
        if values_EE is None:
            continue
        others = np.where(np.eye(len(values_EE), dtype=bool), np.nan, values_EE)
        for e, row in enumerate(others):
            if np.isfinite(row).any():
                scored.append((float(np.nanmax(row)), (place, e)))
    return [single for _, single in sorted(scored, key=lambda entry: (-entry[0], entry[1]))]


def prune_candidates(
    layers: Sequence[MeasuredLayer], count: int, *, narrow: bool
) -> tuple[PruneCandidate, ...]:
    """The experts with the lowest prune scores.

    Args:
        layers: the measured layers.
        count: number of experts to return at most.
        narrow: whether the probe names fewer than two domains.
    """
    return tuple(_candidate(layers[place], e, narrow) for place, e in rank_singles(layers)[:count])


def _candidate(layer: MeasuredLayer, e: int, narrow: bool) -> PruneCandidate:
    score_E, parts = prune_scores(layer), _prune_parts(layer)
    assert not isinstance(score_E, str)
    assert not isinstance(parts, str)
    words = "no token of the probe is dispatched to it"
    if layer.record.expert[e].tokens:
        mass, norm, fisher = (part_E[e] for part_E in parts)
        words = (
            f"{mass:.2f} of the fair share of combine weight, {norm:.2f} of the mean output norm, "
            f"{fisher:.2f} of the mean Fisher trace"
        )
    return PruneCandidate(
        layer=layer.record.layer,
        expert=e,
        score=float(score_E[e]),
        reason=f"{words}; on this text alone" if narrow else words,
        router=layer.record.router,
        narrow=narrow,
    )
