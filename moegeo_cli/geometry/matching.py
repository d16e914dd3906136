r"""Match the experts of two layers one to one by their weights, and test whether they are related.

Experts are matched on one half of a sample of their weights and compared on the other half, because
the best of E! matchings of noise looks good on the half that it was chosen on. The null of the
cosines of matched pairs is the cosines of all other pairs. Experts that were all copied from one
dense layer resemble each other as much as their counterparts, so they count as not related.

Legend: E experts, W sampled weights.
Source: ours; the assignment is Kuhn's (1955), by scipy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

# Matched pairs must exceed the others by this many standard errors (no number of layers reaches it
# by chance) and by this much cosine (so that a trace of common data does not count).
CLEARLY, LEAST_COSINE = 5.0, 0.05


@dataclass(frozen=True, slots=True)
class Match:
    """The matching of two layers.

    `partner_E` is the other layer's expert for each of this layer's. `matched` and `others` are
    mean cosines of matched pairs and of all other pairs, on weights that were not used for the
    matching; `score` is their difference in standard errors.
    """

    partner_E: np.ndarray
    matched: float
    others: float
    score: float

    @property
    def related(self) -> bool:
        """Whether these experts have a common ancestor."""
        return bool(self.score > CLEARLY and self.matched - self.others > LEAST_COSINE)

    @property
    def renumbered(self) -> bool:
        """Whether matched experts have different numbers."""
        return bool((self.partner_E != np.arange(len(self.partner_E))).any())


def match_experts(one_EW: np.ndarray, other_EW: np.ndarray) -> Match | None:
    """Match the experts of two layers.

    Args:
        one_EW: the same sampled weights of every expert of one layer.
        other_EW: the same sampled weights of every expert of the other layer.

    Returns:
        None if the shapes differ, one axis is shorter than 2, or a weight is not finite.
    """
    if one_EW.shape != other_EW.shape or min(one_EW.shape) < 2:
        return None
    if not (np.isfinite(one_EW).all() and np.isfinite(other_EW).all()):
        return None
    first_EE = _cosines(one_EW[:, ::2], other_EW[:, ::2])
    second_EE = _cosines(one_EW[:, 1::2], other_EW[:, 1::2])
    rows, partner_E = linear_sum_assignment(-first_EE)
    chosen = np.zeros(second_EE.shape, dtype=bool)
    chosen[rows, partner_E] = True
    matched, others = second_EE[chosen], second_EE[~chosen]
    spread = float(others.std(ddof=1)) if len(others) > 1 else 0.0
    error = max(spread, one_EW.shape[1] ** -0.5) / np.sqrt(len(matched))
    gap = float(matched.mean() - others.mean())
    return Match(partner_E, float(matched.mean()), float(others.mean()), float(gap / error))


def _cosines(one_EW: np.ndarray, other_EW: np.ndarray) -> np.ndarray:
    one, other = one_EW.astype(np.float64), other_EW.astype(np.float64)
    sizes = np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    return np.asarray((one @ other.T) / np.maximum(sizes, 1e-300))
