r"""Alignment of experts as functions: cosines between their Jacobians, with error and nulls.

.. math:: A_{ab}(x) = \frac{\langle J_a(x), J_b(x)\rangle}{\lVert J_a(x)\rVert\,\lVert J_b(x)\rVert}

with the Frobenius product. The product is either exact, or estimated from random directions v with
E[vvᵀ] = I: :math:`\langle J_a, J_b\rangle = E_v[(J_a v)\cdot(J_b v)]`. The ratio of three estimated
products is biased; the jackknife over directions removes the bias to first order and gives a
standard error.

Legend: T tokens, M directions per token, E experts, G groups of sequences, D width.
Source: [GA] for the alignment; the estimator is ours.
"""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.resample import Draws

SELECTIONS = ("routed", "coselected", "all")


def alignment_ratio(
    inner_TMEE: np.ndarray, norm_a_TME: np.ndarray, norm_b_TME: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Alignments at each token, and their variance from the choice of directions.

    Args:
        inner_TMEE: (J_a v)·(J_b v) for each direction, or the exact product with M = 1.
        norm_a_TME: (J_a v)·(J_a v) of the experts in the rows.
        norm_b_TME: (J_b v)·(J_b v) of the experts in the columns.

    Returns:
        The cosines and their variances, both (T, E, E), float64. M = 1 means exact products: the
        value is the plain ratio and the variance is 0. NaN if an expert's Jacobian is zero.
    """
    inner = inner_TMEE.astype(np.float64)
    rows, columns = norm_a_TME.astype(np.float64), norm_b_TME.astype(np.float64)
    count = inner.shape[1]
    whole_TEE = _cosine(inner.sum(1), rows.sum(1), columns.sum(1))
    if count == 1:
        return whole_TEE, np.zeros_like(whole_TEE)
    parts = _cosine(
        inner.sum(1, keepdims=True) - inner,
        rows.sum(1, keepdims=True) - rows,
        columns.sum(1, keepdims=True) - columns,
    )
    mean_TEE = parts.mean(1)
    value_TEE = count * whole_TEE - (count - 1) * mean_TEE
    variance_TEE = (count - 1) * ((parts - mean_TEE[:, None]) ** 2).mean(1)
    return value_TEE, variance_TEE


def _cosine(inner: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(inner / np.sqrt(rows[..., :, None] * columns[..., None, :]))


def pair_weights(mass_TE: np.ndarray, selection: str) -> np.ndarray:
    """Weight of each token for each pair of experts (a, b), shape (T, E, E).

    Args:
        mass_TE: each token's mass on each expert: 1 if dispatched to it, or the routing
            distribution.
        selection: "routed": tokens routed to a or b, with weight a + b − ab; "coselected": tokens
            routed to both, with weight ab; "all": every token, with weight 1.
    """
    a, b = mass_TE[:, :, None], mass_TE[:, None, :]
    if selection == "all":
        return np.ones((len(mass_TE), mass_TE.shape[1], mass_TE.shape[1]))
    return np.asarray(a * b if selection == "coselected" else a + b - a * b)


class AlignmentSums:
    """Weighted sums of alignments over tokens, by group of sequences and pair of experts.

    Args:
        groups: G.
        experts: E.
    """

    def __init__(self, groups: int, experts: int) -> None:
        shape = (groups, experts, experts)
        self.top_GEE, self.weight_GEE = np.zeros(shape), np.zeros(shape)
        self.square_EE, self.variance_EE = np.zeros(shape[1:]), np.zeros(shape[1:])

    def add(
        self,
        group_T: np.ndarray,
        weights_TEE: np.ndarray,
        values_TEE: np.ndarray,
        variance_TEE: np.ndarray,
    ) -> None:
        """Add tokens. A token at which a Jacobian is zero has weight 0."""
        known = np.isfinite(values_TEE) & np.isfinite(variance_TEE)
        weights = np.where(known, weights_TEE, 0.0)
        np.add.at(self.top_GEE, group_T, weights * np.where(known, values_TEE, 0.0))
        np.add.at(self.weight_GEE, group_T, weights)
        self.square_EE += (weights**2).sum(0)
        self.variance_EE += (weights**2 * np.where(known, variance_TEE, 0.0)).sum(0)

    @property
    def mean_EE(self) -> np.ndarray:
        """Mean alignment of each pair; NaN without a token."""
        return _ratio(self.top_GEE.sum(0), self.weight_GEE.sum(0))

    @property
    def error_EE(self) -> np.ndarray:
        """Standard error of the means from the choice of directions; 0 if they are exact."""
        return _ratio(np.sqrt(self.variance_EE), self.weight_GEE.sum(0))

    @property
    def tokens_EE(self) -> np.ndarray:
        """Effective number of tokens of each mean, (Σ w)² / Σ w²."""
        return np.where(
            self.square_EE > 0,
            self.weight_GEE.sum(0) ** 2 / np.where(self.square_EE > 0, self.square_EE, 1.0),
            0.0,
        )

    def draws_of(self, draws: Draws, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Means of the pairs (rows, columns) in each bootstrap draw, shape (B, P)."""
        tops = draws.sum_draws(self.top_GEE[:, rows, columns])
        return _ratio(tops, draws.sum_draws(self.weight_GEE[:, rows, columns]))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(bottom > 0, top / bottom, np.nan))


def rotation_null(width: int) -> float:
    """Standard deviation of the alignment of two independent random rotations: 1/D.

    ⟨Q_a, Q_b⟩ is the trace of a random rotation, with mean 0 and variance 1, and both norms are √D.
    More tokens do not reduce it, because all tokens see the same weights.
    """
    return 1.0 / width


def spectral_decay(values_S: np.ndarray) -> float | None:
    """Slope of ln σ_i against ln i over the leading singular values; None for fewer than 3.

    Args:
        values_S: singular values, largest first.
    """
    kept = values_S[values_S > 1e-6 * values_S[:1].sum()]
    if len(kept) < 3:
        return None
    order = np.log(np.arange(1, len(kept) + 1))
    return float(np.polyfit(order, np.log(kept), 1)[0])
