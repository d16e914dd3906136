r"""Subspaces that the tokens of an expert span, and distances between two such subspaces.

Distances are computed from principal angles by the sine-cosine method. A cosine is inexact for
small angles and a sine for large ones, so each angle is taken from whichever is exact.

Legend: N tokens, D width, R rank of a subspace, P pairs.
Source: Björck and Golub (1973), Numerical methods for computing angles between linear subspaces,
for the angles; [GA] for their use on routed tokens. The estimators of spectra are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, eigvalsh

# An expert with fewer tokens per dimension has no subspace: it would depend on the sample.
TOKENS_PER_RANK = 4
PRESENT = 1e-12  # share of the largest variance under which a component is rounding error
NOTHING = 1e-24  # share of the mean's squared norm under which the total variance counts as 0


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Weighted principal components, largest variance first.

    `basis_DQ` holds the kept components as orthonormal columns; `variances` those of all
    components, kept or not.
    """

    mean_D: np.ndarray
    basis_DQ: np.ndarray
    variances: np.ndarray

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the components' shares of the variance."""
        shares = self.variances / self.variances.sum()
        return math.exp(-float((shares * np.log(shares)).sum()))

    def rank_of(self, share: float) -> int:
        """Number of leading components that explain at least this share of the variance."""
        reached = np.cumsum(self.variances) / self.variances.sum()
        return min(int(np.searchsorted(reached, share - 1e-12)) + 1, len(self.variances))


def weighted_pca(
    rows_ND: np.ndarray, weights_N: np.ndarray, components: int | None = None
) -> Spectrum | None:
    """Principal components of rows about their weighted mean, in float64.

    Args:
        rows_ND: one row per token.
        weights_N: non-negative weights; only their ratios matter.
        components: number to keep; None for all with a positive variance.

    Returns:
        The components; None if all rows with a positive weight are equal.
    """
    found = _centre(rows_ND, weights_N)
    if found is None:
        return None
    mean_D, scaled_ND, gram = found
    variance = np.maximum(eigvalsh(gram)[::-1], 0.0)
    if variance.sum() <= NOTHING * max(float(mean_D @ mean_D), 1e-300):
        return None
    present = variance > PRESENT * variance[0]
    kept = min(int(present.sum()), components or len(gram))
    return Spectrum(mean_D, _leading(scaled_ND, gram, kept)[0], variance[present])


def leading_basis(rows_ND: np.ndarray, weights_N: np.ndarray, rank: int) -> np.ndarray | None:
    """Only the leading components of `weighted_pca`, (D, R), at a third of its cost.

    Returns:
        None if the centred rows span fewer than R dimensions.
    """
    found = _centre(rows_ND, weights_N)
    if found is None or len(found[2]) < rank:
        return None
    mean_D, scaled_ND, gram = found
    basis_DR, variance_R = _leading(scaled_ND, gram, rank)
    least = max(PRESENT * variance_R[0], NOTHING * float(mean_D @ mean_D))
    return basis_DR if variance_R[-1] > least else None


def _centre(
    rows_ND: np.ndarray, weights_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The mean, the centred weighted rows, and the smaller of their two Gram matrices."""
    used = weights_N > 0
    if used.sum() < 2:
        return None
    share_N = weights_N[used].astype(np.float64)
    share_N /= share_N.sum()
    rows_ND = rows_ND[used].astype(np.float64)
    mean_D = share_N @ rows_ND
    scaled_ND = (rows_ND - mean_D) * np.sqrt(share_N)[:, None]
    small = scaled_ND.shape[0] < scaled_ND.shape[1]
    return mean_D, scaled_ND, scaled_ND @ scaled_ND.T if small else scaled_ND.T @ scaled_ND


def _leading(scaled_ND: np.ndarray, gram: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The leading components of rows, (D, Q), and their variances, largest first."""
    size = len(gram)
    variance_Q, vectors = eigh(gram, subset_by_index=[size - count, size - 1])
    variance_Q, vectors = variance_Q[::-1], vectors[:, ::-1]
    if size < scaled_ND.shape[1]:
        vectors = np.linalg.qr(scaled_ND.T @ vectors / np.sqrt(np.maximum(variance_Q, 1e-300)))[0]
    return vectors, variance_Q


def principal_angles(one_DR: np.ndarray, other_DR: np.ndarray) -> np.ndarray:
    """Angles between two subspaces, in radians, smallest first.

    Args:
        one_DR: orthonormal columns, shape (..., D, R).
        other_DR: orthonormal columns, of the same shape.

    Returns:
        Shape (..., R), each in [0, π/2].
    """
    one, other = one_DR.astype(np.float64), other_DR.astype(np.float64)
    inner = np.swapaxes(one, -1, -2) @ other
    cosines = np.linalg.svd(inner, compute_uv=False)
    rest = other - one @ inner
    sines = np.sort(np.linalg.svd(rest, compute_uv=False), axis=-1)
    sines = sines[..., : cosines.shape[-1]]
    small = cosines**2 >= 0.5
    by_sine = np.arcsin(np.clip(sines, 0.0, 1.0))
    by_cosine = np.arccos(np.clip(cosines, 0.0, 1.0))
    return np.asarray(np.where(small, by_sine, by_cosine))


def geodesic_distance(angles: np.ndarray) -> np.ndarray:
    """Grassmann distance ‖θ‖ / (√R π/2): 0 for equal subspaces, 1 for orthogonal ones."""
    rank = angles.shape[-1]
    return np.asarray(np.sqrt((angles**2).sum(-1)) / (math.sqrt(rank) * math.pi / 2))


def overlap(angles: np.ndarray) -> np.ndarray:
    """Mean of cos² θ: the share of one subspace that lies in the other, from 0 to 1.

    Its mean for two random subspaces of rank R in D dimensions is R / D.
    """
    return np.asarray((np.cos(angles) ** 2).mean(-1))


def pair_distances(bases_EDR: list[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    """Distances and overlaps of all pairs of experts, both (E, E); NaN if one has no subspace.

    Args:
        bases_EDR: each expert's orthonormal columns, (D, R), or None.
    """
    count = len(bases_EDR)
    distance_EE, overlap_EE = np.full((2, count, count), np.nan)
    have = [e for e, basis in enumerate(bases_EDR) if basis is not None]
    bases_EDR = _within_their_span(bases_EDR)
    for place, a in enumerate(have):
        distance_EE[a, a], overlap_EE[a, a] = 0.0, 1.0
        others = have[place + 1 :]
        if not others:
            continue
        one = bases_EDR[a]
        assert one is not None
        angles_PR = principal_angles(
            np.broadcast_to(one, (len(others), *one.shape)),
            np.stack([b for e in others if (b := bases_EDR[e]) is not None]),
        )
        for name_EE, values_P in (
            (distance_EE, geodesic_distance(angles_PR)), (overlap_EE, overlap(angles_PR)),
        ):  # fmt: skip
            name_EE[a, others] = name_EE[others, a] = values_P
    return distance_EE, overlap_EE


def _within_their_span(bases_EDR: list[np.ndarray | None]) -> list[np.ndarray | None]:
    """The subspaces in coordinates of their common span, if it has fewer than D dimensions."""
    known = [basis for basis in bases_EDR if basis is not None]
    if not known or sum(basis.shape[1] for basis in known) >= known[0].shape[0]:
        return bases_EDR
    frame = np.linalg.qr(np.concatenate(known, 1).astype(np.float64))[0]
    return [None if basis is None else frame.T @ basis for basis in bases_EDR]


def enough_tokens(count: float, rank: int) -> str | None:
    """Check that there are enough tokens for a subspace of this rank.

    Returns:
        None if so, otherwise the reason.
    """
    needed = TOKENS_PER_RANK * rank
    if count >= needed:
        return None
    return f"{count:.0f} tokens, fewer than {needed} ({TOKENS_PER_RANK} a dimension)"


@dataclass(frozen=True, slots=True)
class WithoutGroups:
    """One expert's subspace without each group of sequences.

    `coordinates_GQR` are its orthonormal columns in coordinates of `basis_DQ`.
    """

    basis_DQ: np.ndarray
    coordinates_GQR: np.ndarray


def leave_groups_out(
    spectrum: Spectrum,
    rows_ND: np.ndarray,
    weights_N: np.ndarray,
    group_N: np.ndarray,
    groups: int,
    rank: int,
) -> WithoutGroups:
    """The subspace of an expert without each group, within the expert's leading components.

    This is an approximation: leaving out a group mixes the subspace mostly with the next
    components, so a few times R components are enough.

    Args:
        spectrum: the components of all rows.
        rows_ND: the rows of the spectrum.
        weights_N: the weights of the rows.
        group_N: the group of each row.
        groups: G.
        rank: R.
    """
    basis = spectrum.basis_DQ
    inside_NQ = (rows_ND.astype(np.float64) - spectrum.mean_D) @ basis
    weights = weights_N.astype(np.float64) / weights_N.sum()
    size = basis.shape[1]
    mass_G, mean_GQ = np.zeros(groups), np.zeros((groups, size))
    second_GQQ = np.zeros((groups, size, size))
    for g in np.unique(group_N):
        mine = group_N == g
        rows, share = inside_NQ[mine], weights[mine]
        mass_G[g], mean_GQ[g] = share.sum(), share @ rows
        second_GQQ[g] = (rows * share[:, None]).T @ rows
    left_G = np.maximum(1.0 - mass_G, 1e-12)[:, None]
    mean = (mean_GQ.sum(0) - mean_GQ) / left_G
    covariance = (second_GQQ.sum(0) - second_GQQ) / left_G[:, :, None]
    covariance -= mean[:, :, None] * mean[:, None, :]
    vectors = np.linalg.eigh(covariance)[1]
    return WithoutGroups(basis, vectors[:, :, ::-1][:, :, :rank])


def pair_distances_left_out(
    parts: list[WithoutGroups | None], rank: int, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Distances and overlaps of all pairs of experts without each group, both (G, E, E).

    Angles are computed from cosines only: that is exact enough for intervals. NaN if an expert has
    no subspace.
    """
    count = len(parts)
    distance, overlaps = np.full((2, groups, count, count), np.nan)
    for a, one in enumerate(parts):
        for b in range(a + 1, count):
            other = parts[b]
            if one is None or other is None:
                continue
            cross_QQ = one.basis_DQ.T @ other.basis_DQ
            inner_GRR = np.swapaxes(one.coordinates_GQR, 1, 2) @ cross_QQ @ other.coordinates_GQR
            angles = np.arccos(np.clip(np.linalg.svd(inner_GRR, compute_uv=False), 0.0, 1.0))
            distance[:, a, b] = distance[:, b, a] = geodesic_distance(angles)
            overlaps[:, a, b] = overlaps[:, b, a] = (inner_GRR**2).sum((1, 2)) / rank
    return distance, overlaps
