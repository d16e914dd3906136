"""The subspaces that experts' tokens span in one layer, compared with two null values.

The null values are: subspaces of random tokens of the layer, and the two halves of an expert's own
tokens.

Legend: N tokens of an expert, P tokens of the pool, D width, E experts, G groups of sequences,
Q components.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.grassmann import (
    Spectrum,
    WithoutGroups,
    enough_tokens,
    geodesic_distance,
    leading_basis,
    leave_groups_out,
    overlap,
    pair_distances,
    pair_distances_left_out,
    principal_angles,
    weighted_pca,
)

NULL_DRAWS = 2
BLAS_THREADS = 4  # with 16 threads a layer took four times as long: the matrices are small
KEPT_PER_RANK = 4  # components kept per dimension, within which leave-one-out subspaces are found


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """One expert's inputs or outputs, a row per token, with weights and groups of sequences."""

    rows_ND: np.ndarray
    weight_N: np.ndarray
    group_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Subspaces:
    """Distances and overlaps of the subspaces of all pairs of experts, with null values.

    `null_*` are those of the same number of random tokens of the layer. `half_*` compare the two
    halves of an expert's own tokens, split by groups of sequences. `left_*` are values without one
    group, shape (G, E, E). `reasons` say for each expert why it has no subspace; None if it has.
    """

    rank: int
    distance_EE: np.ndarray
    overlap_EE: np.ndarray
    null_distance_EE: np.ndarray
    null_overlap_EE: np.ndarray
    half_distance_E: np.ndarray
    half_overlap_E: np.ndarray
    left_distance_GEE: np.ndarray
    left_overlap_GEE: np.ndarray
    effective_rank_E: np.ndarray
    reasons: tuple[str | None, ...]
    width: int


def measure_subspaces(
    experts: Sequence[ExpertRows], pool_PD: np.ndarray, rank: float, groups: int, seed: int
) -> Subspaces:
    """Measure the subspaces of all experts of a layer.

    Args:
        experts: each expert's rows.
        pool_PD: rows of tokens of the whole layer, from which the null draws.
        rank: number of dimensions; below 1, the share of variance that half of the experts must
            reach.
        groups: number of groups of sequences (G).
        seed: random seed of the null.
    """
    count, width = len(experts), pool_PD.shape[1]
    dimensions = min(_choose_rank(experts, rank), width)
    spectra, reasons = [], []
    for rows in experts:
        spectrum, reason = _spectrum(rows.rows_ND, rows.weight_N, dimensions)
        spectra.append(spectrum)
        reasons.append(reason)
    bases = [None if s is None else s.basis_DQ[:, :dimensions] for s in spectra]
    distance_EE, overlap_EE = pair_distances(bases)
    nulls = np.array([
        pair_distances(_random_bases(experts, reasons, pool_PD, dimensions, [seed, draw]))
        for draw in range(NULL_DRAWS)
    ])  # fmt: skip
    halves = np.array([_halves(rows, dimensions) for rows in experts]).reshape(count, 2)
    parts = [
        None if s is None
        else leave_groups_out(s, r.rows_ND, r.weight_N, r.group_N, groups, dimensions)
        for s, r in zip(spectra, experts, strict=True)
    ]  # fmt: skip
    left_distance, left_overlap = _left_out(parts, dimensions, groups)
    return Subspaces(
        rank=dimensions,
        distance_EE=distance_EE,
        overlap_EE=overlap_EE,
        null_distance_EE=nulls[:, 0].mean(0),
        null_overlap_EE=nulls[:, 1].mean(0),
        half_distance_E=halves[:, 0],
        half_overlap_E=halves[:, 1],
        left_distance_GEE=left_distance,
        left_overlap_GEE=left_overlap,
        effective_rank_E=np.array([np.nan if s is None else s.effective_rank for s in spectra]),
        reasons=tuple(reasons),
        width=width,
    )


def _choose_rank(experts: Sequence[ExpertRows], rank: float) -> int:
    """The given rank; below 1, the median rank that experts need to explain that share."""
    if rank >= 1:
        return int(rank)
    needed = [
        s.rank_of(rank)
        for rows in experts
        if (s := weighted_pca(rows.rows_ND, rows.weight_N, 1)) is not None
    ]
    return int(np.median(needed)) if needed else 1


def _spectrum(
    rows_ND: np.ndarray, weight_N: np.ndarray, rank: int
) -> tuple[Spectrum | None, str | None]:
    """The principal components and None; or None and why there are too few."""
    reason = enough_tokens(int((weight_N > 0).sum()), rank)
    if reason:
        return None, reason
    found = weighted_pca(rows_ND, weight_N, KEPT_PER_RANK * rank)
    if found is None or found.basis_DQ.shape[1] < rank:
        spanned = 0 if found is None else found.basis_DQ.shape[1]
        return None, f"its tokens span {spanned} dimensions, fewer than {rank}"
    return found, None


def _basis_of(rows_ND: np.ndarray, weight_N: np.ndarray, rank: int) -> np.ndarray | None:
    """The basis of the subspace; None if there are too few tokens."""
    if enough_tokens(int((weight_N > 0).sum()), rank):
        return None
    return leading_basis(rows_ND, weight_N, rank)


def _random_bases(
    experts: Sequence[ExpertRows],
    reasons: Sequence[str | None],
    pool_PD: np.ndarray,
    rank: int,
    seed: list[int],
) -> list[np.ndarray | None]:
    """For each expert, the subspace of equally many random tokens, with the expert's weights."""
    generator = np.random.default_rng(seed)
    found: list[np.ndarray | None] = []
    for rows, reason in zip(experts, reasons, strict=True):
        size = min(len(rows.weight_N), len(pool_PD))
        chosen = generator.permutation(len(pool_PD))[:size]
        weights = generator.permutation(rows.weight_N)[:size]
        if reason is not None:
            found.append(None)
            continue
        found.append(_basis_of(pool_PD[chosen], weights, rank))
    return found


def _halves(rows: ExpertRows, rank: int) -> tuple[float, float]:
    """Distance and overlap between the subspaces of the two halves of an expert's tokens.

    Halves are split by groups of sequences. NaN if a half has too few tokens.
    """
    bases = []
    for half in (0, 1):
        mine = rows.group_N % 2 == half
        basis = _basis_of(rows.rows_ND[mine], rows.weight_N[mine], rank)
        if basis is None:
            return np.nan, np.nan
        bases.append(basis)
    angles = principal_angles(*bases)
    return float(geodesic_distance(angles)), float(overlap(angles))


def _left_out(
    parts: list[WithoutGroups | None], rank: int, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    if groups < 2:
        empty = np.full((groups, len(parts), len(parts)), np.nan)
        return empty, empty
    return pair_distances_left_out(parts, rank, groups)
