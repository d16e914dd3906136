r"""Matches the experts of two layers one to one by weights, and tells whether they are related.

Experts are matched on one half of a sample of their weights and judged on the other, so that the
best of E! matchings of noise shows nothing: the cosines of matched pairs stand beside those of
all other pairs, which are the null. Experts that were all copied from one dense layer resemble
each other as much as their counterparts, and are then rightly not told apart.

Legend: E experts, W sampled weights.
Source: ours; the assignment is Kuhn's (1955), by scipy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

# Standard errors by which matched pairs must exceed the others, beyond what any number of layers
# reaches by chance; and by how much cosine, so that a trace of common data does not count.
CLEARLY, LEAST_COSINE = 5.0, 0.05


@dataclass(frozen=True, slots=True)
class Match:
    """One layer's matching: the other layer's expert for each of this one's.

    `matched` and `others` are mean cosines of matched pairs and of all other pairs, on weights that
    the matching did not see; `score` how many standard errors lie between.
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
    """Match the experts of two layers; None if they cannot be matched.

    Args:
        one_EW: the same sample of every expert's weights.
        other_EW: of the other layer's, as many experts and weights.
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
