r"""How router logits become a routing distribution: p = s(z) / Σ s(z), one row a scoring.

Every row gives ln s(z) and d ln s/dz, stable for logits of any size, so that a router whose
scores all underflow still has a distribution.

Legend: E experts. Leading axes are free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from moegeo_cli.errors import UnsupportedArchitectureError

Function = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Scoring:
    """One way of turning logits into positive scores.

    `monotone`: a larger logit always has the larger score, so that selection without a bias
    follows the logits. `constant_free`: adding one number to every logit leaves p unchanged.
    """

    name: str
    score: Function
    log_score: Function
    log_slope: Function
    source: str
    monotone: bool = True
    constant_free: bool = False


def _sigmoid(z: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(z))
    return np.asarray(np.where(z >= 0, 1.0, small) / (1.0 + small))


def _log_sigmoid(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.minimum(z, 0.0) - np.log1p(np.exp(-np.abs(z))))


def _softplus(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z))))


def _log_softplus(z: np.ndarray) -> np.ndarray:
    # softplus(z) → e^z for very negative z: its logarithm is z, less e^z / 2
    low = np.minimum(z, -30.0)
    return np.asarray(
        np.where(z < -30.0, low - 0.5 * np.exp(low), np.log(_softplus(np.maximum(z, -30.0))))
    )


def _softplus_log_slope(z: np.ndarray) -> np.ndarray:
    high = np.maximum(z, -30.0)
    return np.asarray(np.where(z < -30.0, 1.0, _sigmoid(high) / _softplus(high)))


SCORINGS: dict[str, Scoring] = {
    row.name: row
    for row in (
        Scoring(
            "softmax",
            score=np.exp,
            log_score=lambda z: z,
            log_slope=np.ones_like,
            source="Shazeer et al. (2017), without noise",
            constant_free=True,
        ),
        Scoring(
            "sigmoid",
            score=_sigmoid,
            log_score=_log_sigmoid,
            log_slope=lambda z: _sigmoid(-z),
            source="DeepSeek-V3 (arXiv 2412.19437), equation 15",
        ),
        Scoring(
            "sqrt_softplus",
            score=lambda z: np.sqrt(_softplus(z)),
            log_score=lambda z: 0.5 * _log_softplus(z),
            log_slope=lambda z: 0.5 * _softplus_log_slope(z),
            source="DeepSeek-V4's `sqrtsoftplus`, in transformers",
        ),
    )
}


def find_scoring(name: str) -> Scoring:
    """The row called `name`.

    Raises:
        UnsupportedArchitectureError: no such row.
    """
    if name not in SCORINGS:
        raise UnsupportedArchitectureError(
            f"the scoring function {name!r} is not known",
            found=f"known: {', '.join(SCORINGS)}",
            hint="report this model type, with its config.json",
        )
    return SCORINGS[name]


def probabilities(logits_E: np.ndarray, scoring: str) -> np.ndarray:
    """The routing distribution: before top-k, renormalisation and selection bias.

    Args:
        logits_E: raw router logits, shape (..., E), finite.
        scoring: a name in `SCORINGS`.

    Returns:
        Shape (..., E), float64, summing to 1 along the last axis.

    Raises:
        UnsupportedArchitectureError: an unknown scoring.
    """
    logs_E = find_scoring(scoring).log_score(np.asarray(logits_E, float))
    scores_E = np.exp(logs_E - logs_E.max(axis=-1, keepdims=True))
    return np.asarray(scores_E / scores_E.sum(axis=-1, keepdims=True))
