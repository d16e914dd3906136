r"""The direction that all router inputs share, and the router's response to it.

With μ the mean input, μ̂ = μ / ‖μ‖ and W the router's rows (centred over experts for softmax, which
sees nothing of a vector that all rows have), the response is the gain ‖W μ̂‖. A random direction
has the root mean square gain ‖W‖_F / √D; hidden principal directions have their own.

Sums by group of sequences hold all that draws need: every quantity is of μ and of mean squares.

Legend: N tokens, D width, E experts, R rank of the row space, G groups of sequences, B draws.
Source: [MY] for the question (balancing suppresses shared directions); the estimators are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moegeo_cli.geometry.grassmann import weighted_pca
from moegeo_cli.geometry.resample import Draws, Estimate, missing

ROUNDING = 1e-5  # of the largest singular value: below it a direction of float32 rows is rounding
SAME_ROWS = 1e-6  # of the rows' size
NO_RESPONSE = "all rows of the router are the same"
NOTHING_SHARED = "the mean of the router's inputs is zero"


def centre_rows(weight_ED: np.ndarray) -> np.ndarray:
    """W_c = (I − 11ᵀ/E) W in float64: a vector added to every row leaves it as it is.

    Rows that differ by the rounding of float32 alone come back as zeros.
    """
    wide_ED = weight_ED.astype(np.float64)
    centred_ED = wide_ED - wide_ED.mean(axis=0)
    if np.linalg.norm(centred_ED) <= SAME_ROWS * np.linalg.norm(wide_ED):
        return np.zeros_like(centred_ED)
    return np.asarray(centred_ED)


def row_space(weight_ED: np.ndarray, *, centred: bool) -> np.ndarray:
    """An orthonormal basis of the rows' span, shape (D, R); centred rows span at most E − 1.

    Args:
        weight_ED: the rows, finite.
        centred: whether their mean was taken off.
    """
    _, sizes, rows = np.linalg.svd(weight_ED, full_matrices=False)
    most = len(weight_ED) - centred
    kept = int((sizes[:most] > ROUNDING * max(float(sizes[0]), 1e-300)).sum())
    return np.asarray(rows[:kept].T)


@dataclass(frozen=True)
class MeanSums:
    """Sums of vectors, and of their squared lengths, by group of sequences.

    `sums_GX` adds vectors, `squares_G` squared lengths, `counts_G` how many there were.
    """

    sums_GX: np.ndarray
    squares_G: np.ndarray
    counts_G: np.ndarray

    @classmethod
    def of(cls, rows_NX: np.ndarray, group_N: np.ndarray, groups: int) -> MeanSums:
        """The sums of rows, in float64."""
        sums_GX = np.zeros((groups, rows_NX.shape[1]))
        for group in np.unique(group_N):
            sums_GX[group] = rows_NX[group_N == group].sum(axis=0, dtype=np.float64)
        squares_N = np.einsum("nx,nx->n", rows_NX, rows_NX, dtype=np.float64)
        return cls(
            sums_GX,
            np.bincount(group_N, squares_N, groups),
            np.bincount(group_N, minlength=groups).astype(np.float64),
        )

    def through(self, map_XY: np.ndarray) -> np.ndarray:
        """The sums by group after a linear map, shape (G, Y)."""
        return np.asarray(self.sums_GX @ map_XY)

    def mean_square(self, sums_GX: np.ndarray, draws: Draws) -> tuple[float, np.ndarray]:
        """Squared length of the mean of mapped sums: of all, and in each draw, shape (B,)."""
        whole = float((sums_GX.sum(axis=0) ** 2).sum()) / self.counts_G.sum() ** 2
        gram_GG = sums_GX @ sums_GX.T
        counts_B = draws.counts_BG @ self.counts_G
        with np.errstate(divide="ignore", invalid="ignore"):
            return whole, draws.sum_quadratic(gram_GG[None])[:, 0] / counts_B**2

    def square_mean(self, squares_G: np.ndarray, draws: Draws) -> tuple[float, np.ndarray]:
        """Mean of squared lengths: of all, and in each draw."""
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = draws.counts_BG @ squares_G / (draws.counts_BG @ self.counts_G)
        return float(squares_G.sum() / self.counts_G.sum()), draws_B

    def share_of_mean(self, draws: Draws) -> tuple[Estimate, float | None]:
        """‖mean‖² over mean ‖·‖², and what sampling groups around a mean of zero gives of it."""
        count = int(self.counts_G.sum())
        energy, energy_B = self.square_mean(self.squares_G, draws)
        if not energy > 0:
            return missing("all of them are zero", count), None
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
    """Router inputs at some tokens against the router's rows.

    `weight_ED` are centred rows for softmax. Everything rests on `x_ND`, in float64 sums.
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
        """‖μ‖² as a share of the mean squared length of inputs, and its null."""
        return self._sums.share_of_mean(self.draws)

    @property
    def random_response(self) -> float:
        """Root mean square gain of a random direction: ‖W‖_F / √D."""
        return float(np.sqrt((self.weight_ED**2).sum() / self.weight_ED.shape[1]))

    def response(self) -> Estimate:
        """The gain ‖W μ̂‖, in logits a unit of length."""
        sums, count = self._sums, len(self.x_ND)
        if not self.basis_DR.shape[1]:
            return missing(NO_RESPONSE, count)
        shared, shared_B = sums.mean_square(sums.sums_GX, self.draws)
        if not shared > 0:
            return missing(NOTHING_SHARED, count)
        answered, answered_B = sums.mean_square(sums.through(self.weight_ED.T), self.draws)
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = np.sqrt(answered_B / shared_B)
        return Estimate(float(np.sqrt(answered / shared)), draws_B if len(draws_B) else None, count)

    def relative_response(self) -> Estimate:
        """The response over that of a random direction. Below 1: the direction is suppressed."""
        found = self.response()
        if found.value is None:
            return found
        scale = self.random_response
        draws_B = None if found.draws_B is None else found.draws_B / scale
        return Estimate(found.value / scale, draws_B, found.n)

    def principal_response(self, rows: int) -> Estimate:
        """Gain of hidden principal directions that carry as much energy, about the mean.

        The leading ones, until together they have the energy of the shared direction (all, where
        they do not): the root of the mean of ‖W v‖² over them, weighted by variance. Draws hold the
        directions fixed and weigh them anew.

        Args:
            rows: at most so many tokens, spread evenly, are decomposed.
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
        """Share of the inputs' variance that lies in the span of the router's rows."""
        sums, basis_DR, draws = self._sums, self.basis_DR, self.draws
        inside_NR = self.x_ND.astype(np.float64) @ basis_DR
        seen_G = np.bincount(self.group_N, (inside_NR**2).sum(axis=1), draws.groups)
        parts = []
        for squares_G, sums_GX in (
            (seen_G, sums.through(basis_DR)), (sums.squares_G, sums.sums_GX)
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
