"""The best pairs of a layer to merge, each with intervals and a reason.

They are chosen while the layer's sums by group of sequences are in memory. These sums are G times
as large as the layer's matrices, so they are dropped after each layer.

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

# Overlap and alignment disagree on a pair if its two ranks differ by more than this share of the
# number of pairs. Fewer than MIN_PAIRS pairs are not ranked.
DISAGREEMENT, MIN_PAIRS = 0.5, 6


def best_merges(
    record: ExpertLayerRecord, functions: Functions, inputs: Subspaces, draws: Draws, count: int
) -> tuple[MergeCandidate, ...]:
    """The pairs of a layer with the highest alignment.

    Args:
        record: the layer's record.
        functions: alignments of its experts.
        inputs: input subspaces of its experts.
        draws: the bootstrap draws.
        count: number of pairs to return at most.
    """
    values_EE = functions.sums.mean_EE
    disagreeing = disagreements(functions, inputs)
    pairs = [
        (-float(values_EE[a, b]), int(a), int(b))
        for a, b in zip(*np.triu_indices(len(values_EE), 1), strict=True)
        if np.isfinite(values_EE[a, b])
    ]
    return tuple(
        _merge(record, functions, inputs, draws, disagreeing, a, b)
        for _, a, b in sorted(pairs)[:count]
    )


def _merge(
    record: ExpertLayerRecord,
    functions: Functions,
    inputs: Subspaces,
    draws: Draws,
    disagreeing: tuple[np.ndarray, np.ndarray] | None,
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
    if disagreeing is not None:
        higher, lower = (bool(flags_EE[a, b]) for flags_EE in disagreeing)
        disagrees = "far higher" if higher else "far lower" if lower else None
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
    """Pairs on which the overlap of inputs and the alignment of functions disagree.

    Pairs of the layer are ranked by each of the two. A pair is flagged if its ranks differ by more
    than half of the number of pairs.

    Returns:
        Two boolean arrays of shape (E, E), set above the diagonal only: similar inputs but
        different functions; different inputs but similar functions. None if too few pairs have
        both values.
    """
    if functions is None:
        return None
    rows, columns = np.triu_indices(len(inputs.overlap_EE), 1)
    both = np.array([inputs.overlap_EE, functions.sums.mean_EE])[:, rows, columns]
    known = np.isfinite(both).all(0)
    if known.sum() < MIN_PAIRS:
        return None
    input_P, function_P = (rankdata(values) / known.sum() for values in both[:, known])
    flags = np.zeros((2, *inputs.overlap_EE.shape), dtype=bool)
    for flag_EE, gap_P in zip(flags, (input_P - function_P, function_P - input_P), strict=True):
        flag_EE[rows[known], columns[known]] = gap_P > DISAGREEMENT
    return flags[0], flags[1]
