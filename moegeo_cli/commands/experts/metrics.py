"""Metrics of a layer from its alignments and subspaces, its matrices, and numbers of each expert.

Legend: E experts, P pairs of them, G groups of sequences, B draws, S singular values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moegeo_cli.commands.experts.alignment import Functions
from moegeo_cli.commands.experts.record import ExpertRecord
from moegeo_cli.commands.experts.subspaces import Subspaces
from moegeo_cli.commands.experts.tokens import LayerTokens
from moegeo_cli.geometry.jacobian import rotation_null
from moegeo_cli.geometry.resample import (
    Draws,
    Estimate,
    draws_from_jackknife,
    interval,
    missing,
)
from moegeo_cli.records import Metric
from moegeo_cli.records.fields import Matrix

DIGITS = 6  # significant digits in matrices and lists, to keep JSON small
PAIRS = 512  # pairs whose draws are in memory at a time
NOT_ENOUGH = "no two experts have enough tokens"
COSINE, OVERLAP, DISTANCE = "cosine", "mean cos² of angles", "share of the largest"
DECORRELATION, DIMENSIONS = "1 − cosine", "dimensions"
OF_FUNCTIONS = {
    "alignment": COSINE, "alignment_size": COSINE, "functional_decorrelation": DECORRELATION,
    "mean_jacobian_alignment": COSINE, "stable_rank": DIMENSIONS,
}  # fmt: skip


def metric(estimate: Estimate, unit: str, null: float | None = None) -> Metric:
    """The record of an estimate."""
    low, high = interval(estimate.draws_B, estimate.value)
    return Metric(
        value=estimate.value, ci_low=low, ci_high=high, n=estimate.n, unit=unit, null_value=null,
        reason=estimate.reason,
    )  # fmt: skip


def layer_metrics(
    tokens: LayerTokens,
    functions: Functions | None,
    inputs: Subspaces,
    outputs: Subspaces | None,
    draws: Draws,
) -> dict[str, Metric]:
    """The metrics of a layer: means over pairs, and numbers derived from them.

    Args:
        tokens: the experts' inputs and token weights.
        functions: their alignments; None if they could not be measured as functions.
        inputs: their input subspaces.
        outputs: their output subspaces; None without functions.
        draws: the bootstrap draws.
    """
    reason = tokens.block.problem or ""
    found: dict[str, Metric] = {}
    size = missing(reason)
    if functions is None:
        for name, unit in OF_FUNCTIONS.items():
            found[name] = metric(missing(reason), unit)
    else:
        plain, size = _alignments(functions, draws)
        null_EE = functions.null.mean_EE
        off = ~np.eye(len(null_EE), dtype=bool) & np.isfinite(null_EE)
        null, null_size = (
            (float(null_EE[off].mean()), float(np.abs(null_EE[off]).mean()))
            if off.any() else (None, None)
        )  # fmt: skip
        found["alignment"] = metric(plain, COSINE, null)
        found["alignment_size"] = metric(size, COSINE, null_size)
        found["functional_decorrelation"] = metric(
            _one_minus(size), DECORRELATION, None if null_size is None else 1.0 - null_size
        )
        found["mean_jacobian_alignment"] = _plain_mean(functions.mean_EE, COSINE)
        found["alignment_rotation_null"] = Metric(
            rotation_null(int(tokens.x_ND.shape[1])), unit="standard deviation of a cosine"
        )
        stable = functions.stable_rank_E[np.isfinite(functions.stable_rank_E)]
        found["stable_rank"] = (
            Metric(float(stable.mean()), n=len(stable), unit=DIMENSIONS)
            if len(stable) else metric(missing("no expert has a token"), DIMENSIONS)
        )  # fmt: skip
    overlaps = {}
    for name, space in (("input", inputs), ("output", outputs)):
        for what, unit in (("overlap", OVERLAP), ("distance", DISTANCE), ("split_half", OVERLAP),
                           ("effective_rank", DIMENSIONS)):  # fmt: skip
            if space is None:
                found[f"{what}_{name}"] = metric(missing(reason), unit)
        if space is None:
            continue
        overlaps[name] = _pair_mean(space.overlap_EE, space.left_overlap_GEE, draws)
        distance = _pair_mean(space.distance_EE, space.left_distance_GEE, draws)
        found[f"overlap_{name}"] = metric(
            overlaps[name], OVERLAP, _finite_mean(space.null_overlap_EE)
        )
        found[f"distance_{name}"] = metric(distance, DISTANCE, _finite_mean(space.null_distance_EE))
        half = _finite_mean(space.half_overlap_E)
        found[f"split_half_{name}"] = (
            metric(missing("no expert has enough tokens in both halves"), OVERLAP)
            if half is None else Metric(half, unit=OVERLAP)
        )  # fmt: skip
        ranks = _finite_mean(space.effective_rank_E)
        found[f"effective_rank_{name}"] = (
            metric(missing(NOT_ENOUGH), DIMENSIONS)
            if ranks is None else Metric(ranks, unit=DIMENSIONS)
        )  # fmt: skip
    found["overlap_chance"] = Metric(inputs.rank / inputs.width, unit=OVERLAP)
    found["asymmetry"] = metric(_minus(overlaps["input"], size), "overlap − |cosine|")
    return found


def _alignments(functions: Functions, draws: Draws) -> tuple[Estimate, Estimate]:
    """Mean alignment and mean |alignment| over pairs, with their draws."""
    sums = functions.sums
    rows, columns = np.triu_indices(len(sums.mean_EE), 1)
    values_P = sums.mean_EE[rows, columns]
    known = np.isfinite(values_P)
    if not known.any():
        reason = "no token counts for any pair"
        return missing(reason), missing(reason)
    rows, columns, values_P = rows[known], columns[known], values_P[known]
    plain, size = [], []
    for start in range(0, len(rows), PAIRS):
        part = sums.draws_of(draws, rows[start : start + PAIRS], columns[start : start + PAIRS])
        plain.append((np.nansum(part, 1), np.nansum(np.abs(part), 1), np.isfinite(part).sum(1)))
    count_B = np.maximum(sum(p[2] for p in plain), 1)
    size = [sum(p[i] for p in plain) / count_B for i in (0, 1)]
    usable = len(draws.counts_BG) > 0
    return (
        Estimate(float(values_P.mean()), size[0] if usable else None, len(values_P)),
        Estimate(float(np.abs(values_P).mean()), size[1] if usable else None, len(values_P)),
    )


def _pair_mean(values_EE: np.ndarray, left_GEE: np.ndarray, draws: Draws) -> Estimate:
    """Mean over the pairs that have a value."""
    rows, columns = np.triu_indices(len(values_EE), 1)
    known = np.isfinite(values_EE[rows, columns])
    if not known.any():
        return missing(NOT_ENOUGH)
    rows, columns = rows[known], columns[known]
    value = float(values_EE[rows, columns].mean())
    left_G = left_GEE[:, rows, columns].mean(1)
    return Estimate(value, draws_from_jackknife(value, left_G, draws), len(rows))


def _one_minus(estimate: Estimate) -> Estimate:
    if estimate.value is None:
        return estimate
    draws_B = None if estimate.draws_B is None else 1.0 - estimate.draws_B
    return Estimate(1.0 - estimate.value, draws_B, estimate.n)


def _minus(overlap: Estimate, size: Estimate) -> Estimate:
    """Overlap minus |alignment|, draw by draw."""
    if overlap.value is None or size.value is None:
        return missing(overlap.reason or size.reason or NOT_ENOUGH)
    draws_B = None
    if overlap.draws_B is not None and size.draws_B is not None:
        draws_B = overlap.draws_B - size.draws_B
    return Estimate(overlap.value - size.value, draws_B, overlap.n)


def _plain_mean(values_EE: np.ndarray, unit: str) -> Metric:
    rows, columns = np.triu_indices(len(values_EE), 1)
    mean = _finite_mean(values_EE[rows, columns])
    return metric(missing(NOT_ENOUGH), unit) if mean is None else Metric(mean, unit=unit)


def _finite_mean(values: np.ndarray) -> float | None:
    """Mean of the finite values, without the diagonal of a matrix; None if there are none."""
    if values.ndim == 2:
        values = values[~np.eye(len(values), dtype=bool)]
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def list_matrices(
    functions: Functions | None, inputs: Subspaces, outputs: Subspaces | None
) -> dict[str, Matrix]:
    """The E × E matrices by name."""
    found: dict[str, np.ndarray] = {}
    if functions is not None:
        found |= {
            "alignment": functions.sums.mean_EE,
            "alignment_error": functions.sums.error_EE,
            "alignment_tokens": functions.sums.tokens_EE,
            "alignment_null": functions.null.mean_EE,
            "mean_jacobian_alignment": functions.mean_EE,
        }
        if functions.weight_cosine_EE is not None:
            found["weight_cosine"] = functions.weight_cosine_EE
    for name, space in (("input", inputs), ("output", outputs)):
        if space is not None:
            found |= {
                f"overlap_{name}": space.overlap_EE,
                f"overlap_{name}_null": space.null_overlap_EE,
                f"distance_{name}": space.distance_EE,
                f"distance_{name}_null": space.null_distance_EE,
            }
    return {name: tuple(round_row(row) for row in matrix) for name, matrix in found.items()}


def pair_alignment(functions: Functions, draws: Draws, a: int, b: int) -> Metric:
    """The alignment of two experts, with its interval and null value."""
    sums, null = functions.sums, float(functions.null.mean_EE[a, b])
    draws_B = sums.draws_of(draws, np.array([a]), np.array([b]))[:, 0]
    estimate = Estimate(
        float(sums.mean_EE[a, b]), draws_B if len(draws_B) else None, int(sums.tokens_EE[a, b])
    )
    return metric(estimate, COSINE, null if np.isfinite(null) else None)


def find_nearest(functions: Functions | None, expert: int) -> int | None:
    """The expert with the highest alignment to an expert; None if no token counts for its pairs."""
    if functions is None:
        return None
    row_E = functions.sums.mean_EE[expert].copy()
    row_E[expert] = np.nan
    return int(np.nanargmax(row_E)) if np.isfinite(row_E).any() else None


def describe_expert(
    expert: int,
    tokens: LayerTokens,
    functions: Functions | None,
    inputs: Subspaces,
    outputs: Subspaces | None,
    norm_E: np.ndarray,
    draws: Draws,
) -> ExpertRecord:
    """One expert's record."""
    singular = None if functions is None else functions.singular_ES[expert]
    fisher_E = tokens.fisher_trace_E
    spaces = [("inputs", inputs), *([("outputs", outputs)] if outputs is not None else [])]
    used = bool(tokens.tokens_E[expert])
    nearest = find_nearest(functions, expert)
    return ExpertRecord(
        expert=expert,
        tokens=int(tokens.tokens_E[expert]),
        load=float(tokens.load_E[expert]),
        mass=float(tokens.mass_E[expert]),
        output_norm=_number(norm_E[expert]),
        fisher_trace=None if isinstance(fisher_E, str) or not used else float(fisher_E[expert]),
        rank_input=_number(inputs.effective_rank_E[expert]),
        rank_output=None if outputs is None else _number(outputs.effective_rank_E[expert]),
        split_half_input=_number(inputs.half_overlap_E[expert]),
        split_half_output=None if outputs is None else _number(outputs.half_overlap_E[expert]),
        singular_values=None if singular is None else tuple(
            float(f"{value:.{DIGITS}g}") for value in singular
        ),
        stable_rank=None if functions is None else _number(functions.stable_rank_E[expert]),
        spectral_decay=None if functions is None else functions.decay_E[expert],
        reasons=_reasons(expert, tokens, dict(spaces)),
        nearest=nearest,
        nearest_alignment=None if functions is None or nearest is None
        else pair_alignment(functions, draws, expert, nearest),
    )  # fmt: skip


def _reasons(expert: int, tokens: LayerTokens, spaces: dict[str, Subspaces]) -> tuple[str, ...]:
    """Which numbers of an expert are missing, and why."""
    found = [f"functions: {tokens.block.problem}"] if tokens.block.problem else []
    for name, space in spaces.items():
        reason = space.reasons[expert]
        if reason is None and not np.isfinite(space.half_overlap_E[expert]):
            reason = "too few tokens in one of its two halves"
        found += [f"{name}: {reason}"] if reason else []
    if not tokens.tokens_E[expert]:
        found.append("no token of the probe is dispatched to it")
    elif isinstance(tokens.fisher_trace_E, str):
        found.append(f"Fisher trace: {tokens.fisher_trace_E}")
    return tuple(found)


def _number(value: float) -> float | None:
    return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None


def round_row(row: Sequence[float] | np.ndarray) -> tuple[float | None, ...]:
    """Numbers rounded to `DIGITS` significant digits; None for those that are not finite."""
    return tuple(_number(float(value)) for value in row)
