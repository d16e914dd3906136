"""Which experts to merge or to prune, best candidates first, each with its reason.

Legend: E experts of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moegeo_cli.experts_records import MergeCandidate, PruneCandidate
from moegeo_cli.measurement.expert_layers import MeasuredLayer, disagrees

LISTED = 10
Pair = tuple[int, int, int]  # place of the layer, and two experts
Single = tuple[int, int]  # place of the layer, and an expert


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
    """A layer's E × E values by the name of a choice."""
    if matrix == "overlap":
        return layer.inputs.overlap_EE
    if layer.functions is None:
        return None
    if matrix == "alignment":
        return layer.functions.sums.mean_EE
    return layer.functions.weight_cosine_EE


def merge_candidates(layers: Sequence[MeasuredLayer], count: int) -> tuple[MergeCandidate, ...]:
    """Pairs of the best aligned experts.

    Args:
        layers: the measured layers.
        count: how many, if there are so many.
    """
    return tuple(_merge(layers[p], a, b) for p, a, b in rank_pairs(layers, "alignment")[:count])


def _merge(layer: MeasuredLayer, a: int, b: int) -> MergeCandidate:
    alignment, overlap = layer.alignment(a, b), layer.overlap(a, b)
    functions, limit = layer.functions, layer.null_limit
    assert functions is not None
    assert alignment.value is not None
    above = limit is not None and alignment.value > limit
    error = float(functions.sums.error_EE[a, b])
    words = f"alignment {alignment.value:.3f}"
    words += f" ± {error:.3f} (directions)" if error > 0 else ""
    words += f" at {alignment.n:,} tokens"
    if limit is not None:
        side = "above" if above else "within"
        words += f", {side} what independent experts reach ({limit:.3f})"
    if overlap.value is not None:
        words += f"; their inputs overlap by {overlap.value:.2f}"
        words += "" if overlap.null_value is None else f" (random tokens {overlap.null_value:.2f})"
    contrary = disagrees(layer, a, b)
    if contrary:
        words += "; by their inputs they would rank far lower"
    cosine_EE = functions.weight_cosine_EE
    return MergeCandidate(
        layer=layer.record.layer,
        experts=(a, b),
        alignment=alignment,
        overlap=overlap,
        reason=words,
        router=layer.record.router,
        weight_cosine=None if cosine_EE is None else float(cosine_EE[a, b]),
        above_null=above,
        disagrees=contrary,
    )


def prune_scores(layer: MeasuredLayer) -> np.ndarray | None:
    """Routed mass × output norm × Fisher trace of each expert, each relative to its mean.

    An expert that nothing was routed to has 0. None where the layer lacks one of the three.
    """
    tokens, record = layer.tokens, layer.record
    fisher_E = tokens.fisher_trace_E
    if fisher_E is None or layer.functions is None:
        return None
    norm_E = np.array([e.output_norm if e.output_norm is not None else 0.0 for e in record.expert])
    parts = [np.where(tokens.tokens_E > 0, p, 0.0) for p in (tokens.mass_E, norm_E, fisher_E)]
    if any(part.sum() <= 0 for part in parts):
        return None
    score_E: np.ndarray = np.prod([part / part.mean() for part in parts], axis=0)
    return score_E


def rank_singles(layers: Sequence[MeasuredLayer]) -> list[Single]:
    """All experts, those that least passes through first."""
    scored = [
        (float(score), (place, e))
        for place, layer in enumerate(layers)
        if (score_E := prune_scores(layer)) is not None
        for e, score in enumerate(score_E)
    ]
    return [single for _, single in sorted(scored)]


def rank_singles_by(layers: Sequence[MeasuredLayer], matrix: str) -> list[Single]:
    """All experts, those most like another one first, by a matrix of pairs."""
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


def prune_candidates(layers: Sequence[MeasuredLayer], count: int) -> tuple[PruneCandidate, ...]:
    """Experts that least passes through.

    Args:
        layers: the measured layers.
        count: how many, if there are so many.
    """
    return tuple(_prune(layers[place], e) for place, e in rank_singles(layers)[:count])


def _prune(layer: MeasuredLayer, e: int) -> PruneCandidate:
    score_E = prune_scores(layer)
    assert score_E is not None
    expert = layer.record.expert[e]
    if expert.tokens == 0:
        words = "no token of the probe is dispatched to it"
    else:
        fair = 1.0 / layer.record.experts
        words = f"{(expert.mass or 0.0) / fair:.2f} of the fair share of combine weight"
        for name, value, values in (
            ("output norm", expert.output_norm, [x.output_norm for x in layer.record.expert]),
            ("Fisher trace", expert.fisher_trace, [x.fisher_trace for x in layer.record.expert]),
        ):
            known = [v for v in values if v is not None]
            if value is not None and sum(known) > 0:
                words += f", {value / (sum(known) / len(known)):.2f} of the mean {name}"
    return PruneCandidate(
        layer=layer.record.layer,
        expert=e,
        score=float(score_E[e]),
        reason=words,
        router=layer.record.router,
    )
