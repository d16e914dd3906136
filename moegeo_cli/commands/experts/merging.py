"""The pairs of a layer's experts that are merged best, each with its intervals and its reason.

They are chosen while the layer's sums by group of sequences are in memory: these are G times as
large as the layer's matrices, and no layer keeps them.

Legend: E experts, G groups of sequences.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from moegeo_cli.commands.experts.alignment import Functions
from moegeo_cli.commands.experts.metrics import OVERLAP, metric, pair_alignment
from moegeo_cli.commands.experts.record import ExpertLayerRecord, MergeCandidate
from moegeo_cli.commands.experts.subspaces import Subspaces
from moegeo_cli.geometry.resample import Draws, Estimate, draws_from_jackknife, missing
from moegeo_cli.records import Metric

# Overlap and alignment disagree on a pair whose ranks lie further apart than this share of them.
DISAGREEMENT, LEAST_PAIRS = 0.5, 6


def best_merges(
    record: ExpertLayerRecord, functions: Functions, inputs: Subspaces, draws: Draws, count: int
) -> tuple[MergeCandidate, ...]:
    """A layer's best aligned pairs.

    Args:
        record: of the layer.
        functions: what its experts do.
        inputs: the subspaces of what they are given.
        draws: the bootstrap draws.
        count: how many, if there are so many.
    """
    values_EE = functions.sums.mean_EE
    contrary = disagreements(functions, inputs)
    pairs = [
        (-float(values_EE[a, b]), int(a), int(b))
        for a, b in zip(*np.triu_indices(len(values_EE), 1), strict=True)
        if np.isfinite(values_EE[a, b])
    ]
    return tuple(
        _merge(record, functions, inputs, draws, contrary, a, b)
        for _, a, b in sorted(pairs)[:count]
    )


def _merge(
    record: ExpertLayerRecord,
    functions: Functions,
    inputs: Subspaces,
    draws: Draws,
    contrary: tuple[np.ndarray, np.ndarray] | None,
    a: int,
    b: int,
) -> MergeCandidate:
    alignment = pair_alignment(functions, draws, a, b)
    overlap = _overlap(inputs, draws, a, b)
    limit = record.null_limit
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
    disagrees = None
    if contrary is not None:
        disagrees = (
            "far higher" if contrary[0][a, b] else "far lower" if contrary[1][a, b] else None
        )
    if disagrees:
        words += f"; by their inputs they would rank {disagrees}"
    cosine_EE = functions.weight_cosine_EE
    return MergeCandidate(
        layer=record.layer,
        experts=(a, b),
        alignment=alignment,
        overlap=overlap,
        reason=words,
        router=record.router,
        weight_cosine=None if cosine_EE is None else float(cosine_EE[a, b]),
        above_null=above,
        disagrees=disagrees is not None,
    )


def _overlap(inputs: Subspaces, draws: Draws, a: int, b: int) -> Metric:
    """The overlap of a pair's input subspaces, with its interval."""
    for e in (a, b):
        if inputs.reasons[e]:
            return metric(missing(f"expert {e}: {inputs.reasons[e]}"), OVERLAP)
    value = float(inputs.overlap_EE[a, b])
    draws_B = draws_from_jackknife(value, inputs.left_overlap_GEE[:, a, b], draws)
    null = float(inputs.null_overlap_EE[a, b])
    return metric(Estimate(value, draws_B), OVERLAP, null if np.isfinite(null) else None)


def disagreements(
    functions: Functions | None, inputs: Subspaces
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pairs that see alike and do differently, and the reverse, as (E, E) flags.

    By rank among the layer's pairs, which is how either would be used to choose: flagged where
    overlap of inputs and alignment lie more than half of the ranking apart. None where too few
    pairs have both. Flags stand above the diagonal.
    """
    if functions is None:
        return None
    rows, columns = np.triu_indices(len(inputs.overlap_EE), 1)
    both = np.array([inputs.overlap_EE, functions.sums.mean_EE])[:, rows, columns]
    known = np.isfinite(both).all(0)
    if known.sum() < LEAST_PAIRS:
        return None
    seen_P, done_P = (rankdata(values) / known.sum() for values in both[:, known])
    flags = np.zeros((2, *inputs.overlap_EE.shape), dtype=bool)
    for flag_EE, apart_P in zip(flags, (seen_P - done_P, done_P - seen_P), strict=True):
        flag_EE[rows[known], columns[known]] = apart_P > DISAGREEMENT
    return flags[0], flags[1]
