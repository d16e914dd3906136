r"""The direction that all router inputs share, and the router's response to it.

Let μ be the mean input, μ̂ = μ / ‖μ‖, and W the router's rows. For softmax, W is centred over
experts, because softmax ignores a vector that is added to all rows. The response is the gain
‖W μ̂‖. It is compared with the root mean square gain of a random direction, ‖W‖_F / √D, and with
the gain of principal directions of the inputs.

Every quantity depends only on μ and on mean squares, so bootstrap draws need only sums by group.

Legend: N tokens, D width, E experts, R rank of the row space, G groups of sequences, B draws.
Source: [MY] for the question (balancing suppresses shared directions); the estimators are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moegeo_cli.geometry.grassmann import weighted_pca
from moegeo_cli.geometry.resample import Draws, Estimate, missing

ROUNDING = 1e-5  # share of the largest singular value under which one of float32 rows is rounding
SAME_ROWS = 1e-6  # share of the rows' norm under which centred rows count as zero
NO_RESPONSE = "all rows of the router are the same"
NOTHING_SHARED = "the mean of the router's inputs is zero"


def centre_rows(weight_ED: np.ndarray) -> np.ndarray:
    """W_c = (I − 11ᵀ/E) W in float64, (E, D): the rows minus their mean.

    Rows that differ only by float32 rounding give zeros.
    """
    wide_ED = weight_ED.astype(np.float64)
    centred_ED = wide_ED - wide_ED.mean(axis=0)
    if np.linalg.norm(centred_ED) <= SAME_ROWS * np.linalg.norm(wide_ED):
        return np.zeros_like(centred_ED)
    return np.asarray(centred_ED)


def row_space(weight_ED: np.ndarray, *, centred: bool) -> np.ndarray:
    """An orthonormal basis of the span of the rows, shape (D, R).

    Args:
        weight_ED: the rows, finite.
        centred: whether their mean was subtracted; then R is at most E − 1.
    """
    _, sizes, rows = np.linalg.svd(weight_ED, full_matrices=False)
    most = len(weight_ED) - centred
    kept = int((sizes[:most] > ROUNDING * max(float(sizes[0]), 1e-300)).sum())
    return np.asarray(rows[:kept].T)


@dataclass(frozen=True)
class MeanSums:
    """Sums of vectors by group of sequences.

    `sums_GX` are sums of the vectors, `squares_G` sums of their squared lengths, `counts_G` the
    number of vectors.
    """

    sums_GX: np.ndarray
    squares_G: np.ndarray
    counts_G: np.ndarray

    @classmethod
    def of(cls, rows_NX: np.ndarray, group_N: np.ndarray, groups: int) -> MeanSums:
        """Sum rows by group, in float64."""
        sums_GX = np.zeros((groups, rows_NX.shape[1]))
        for group in np.unique(group_N):
            sums_GX[group] = rows_NX[group_N == group].sum(axis=0, dtype=np.float64)
        squares_N = np.einsum("nx,nx->n", rows_NX, rows_NX, dtype=np.float64)
        return cls(
            sums_GX,
            np.bincount(group_N, squares_N, groups),
            np.bincount(group_N, minlength=groups).astype(np.float64),
        )

    def map_sums(self, map_XY: np.ndarray) -> np.ndarray:
        """The sums by group after a linear map, shape (G, Y)."""
        return np.asarray(self.sums_GX @ map_XY)

    def mean_square(self, sums_GX: np.ndarray, draws: Draws) -> tuple[float, np.ndarray]:
        """Squared length of the mean vector: over all groups, and in each draw, shape (B,)."""
        whole = float((sums_GX.sum(axis=0) ** 2).sum()) / self.counts_G.sum() ** 2
        gram_GG = sums_GX @ sums_GX.T
        counts_B = draws.counts_BG @ self.counts_G
        with np.errstate(divide="ignore", invalid="ignore"):
            return whole, draws.sum_quadratic(gram_GG[None])[:, 0] / counts_B**2

    def square_mean(self, squares_G: np.ndarray, draws: Draws) -> tuple[float, np.ndarray]:
        """Mean of the squared lengths: over all groups, and in each draw, shape (B,)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = draws.counts_BG @ squares_G / (draws.counts_BG @ self.counts_G)
        return float(squares_G.sum() / self.counts_G.sum()), draws_B

    def share_of_mean(self, draws: Draws) -> tuple[Estimate, float | None]:
        """‖mean‖² over mean ‖·‖², and its null: its value from sampling noise around mean zero."""
        count = int(self.counts_G.sum())
        energy, energy_B = self.square_mean(self.squares_G, draws)
        if not energy > 0:
            return missing("all vectors are zero", count), None
        shared, shared_B = self.mean_square(self.sums_GX, draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = shared_B / energy_B
        estimate = Estimate(float(shared / energy), draws_B if len(draws_B) else None, count)
        mean_X = self.sums_GX.sum(axis=0) / self.counts_G.sum()
        apart_GX = self.sums_GX - self.counts_G[:, None] * mean_X
        used = int((self.counts_G > 0).sum())
        if used < 2:
            return estimate, None
        noise = float((apart_GX**2).sum()) * used / (used - 1) / self.counts_G.sum() ** 2
        return estimate, noise / energy


@dataclass(frozen=True)
class SharedDirection:
    """Measures the shared direction of router inputs `x_ND` and the router's response to it.

    `weight_ED` are the router's rows, centred for softmax; `basis_DR` is a basis of their span.
    `group_N` is each token's group of sequences.
    """

    x_ND: np.ndarray
    group_N: np.ndarray
    weight_ED: np.ndarray
    basis_DR: np.ndarray
    draws: Draws

    @cached_property
    def _sums(self) -> MeanSums:
        return MeanSums.of(self.x_ND, self.group_N, self.draws.groups)

    def energy(self) -> tuple[Estimate, float | None]:
        """‖μ‖² over the mean squared length of the inputs, and its null value."""
        return self._sums.share_of_mean(self.draws)

    @property
    def random_response(self) -> float:
        """Root mean square gain of a random direction: ‖W‖_F / √D."""
        return float(np.sqrt((self.weight_ED**2).sum() / self.weight_ED.shape[1]))

    def response(self) -> Estimate:
        """The gain ‖W μ̂‖, in logits per unit of length."""
        sums, count = self._sums, len(self.x_ND)
        if not self.basis_DR.shape[1]:
            return missing(NO_RESPONSE, count)
        shared, shared_B = sums.mean_square(sums.sums_GX, self.draws)
        if not shared > 0:
            return missing(NOTHING_SHARED, count)
        mapped, mapped_B = sums.mean_square(sums.map_sums(self.weight_ED.T), self.draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = np.sqrt(mapped_B / shared_B)
        return Estimate(float(np.sqrt(mapped / shared)), draws_B if len(draws_B) else None, count)

    def relative_response(self) -> Estimate:
        """The response over that of a random direction; below 1 the direction is suppressed."""
        found = self.response()
        if found.value is None:
            return found
        scale = self.random_response
        draws_B = None if found.draws_B is None else found.draws_B / scale
        return Estimate(found.value / scale, draws_B, found.n)

    def principal_response(self, rows: int) -> Estimate:
        """Gain of the leading principal directions of the inputs, as a comparison.

        The leading directions are taken until their variance reaches ‖μ‖² (all, if it does not).
        The gain is the square root of the variance-weighted mean of ‖W v‖² over them. Draws keep
        the directions and change the weights.

        Args:
            rows: largest number of tokens, evenly spaced, for the decomposition.
        """
        chosen = np.linspace(0, len(self.x_ND) - 1, min(rows, len(self.x_ND))).astype(np.int64)
        x_ND, draws = self.x_ND[chosen], self.draws
        found = weighted_pca(x_ND, np.ones(len(chosen)))
        if found is None:
            return missing("the router's inputs do not vary", len(chosen))
        shared, _ = self._sums.mean_square(self._sums.sums_GX, draws)
        reached = np.cumsum(found.variances)
        count = min(int(np.searchsorted(reached, shared)) + 1, found.basis_DQ.shape[1])
        basis_DQ = found.basis_DQ[:, :count]
        gain_Q = ((self.weight_ED @ basis_DQ) ** 2).sum(axis=0)
        along_NQ = ((x_ND.astype(np.float64) - found.mean_D) @ basis_DQ) ** 2
        energy_GQ = np.zeros((draws.groups, count))
        np.add.at(energy_GQ, self.group_N[chosen], along_NQ)
        energy_Q, energy_BQ = energy_GQ.sum(axis=0), draws.sum_draws(energy_GQ)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = np.sqrt(energy_BQ @ gain_Q / energy_BQ.sum(axis=1))
        value = float(np.sqrt(energy_Q @ gain_Q / energy_Q.sum()))
        return Estimate(value, draws_B if len(draws_B) else None, len(chosen))

    def row_space_share(self) -> Estimate:
        """Share of the variance of the inputs that lies in the span of the router's rows."""
        sums, basis_DR, draws = self._sums, self.basis_DR, self.draws
        inside_NR = self.x_ND.astype(np.float64) @ basis_DR
        seen_G = np.bincount(self.group_N, (inside_NR**2).sum(axis=1), draws.groups)
        parts = []
        for squares_G, sums_GX in (
            (seen_G, sums.map_sums(basis_DR)), (sums.squares_G, sums.sums_GX)
        ):  # fmt: skip
            whole, whole_B = sums.square_mean(squares_G, draws)
            mean, mean_B = sums.mean_square(sums_GX, draws)
            parts.append((whole - mean, whole_B - mean_B))
        (seen, seen_B), (total, total_B) = parts
        if not total > 0:
            return missing("the router's inputs do not vary", len(self.x_ND))
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = np.where(total_B > 0, seen_B / total_B, np.nan)
        return Estimate(float(seen / total), draws_B if len(draws_B) else None, len(self.x_ND))
