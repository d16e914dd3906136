"""The routing distribution of router logits z: p = s(z) / Σ s(z), with the scoring's function s.

Legend: E experts. Leading axes are free.
"""

from __future__ import annotations

import numpy as np

from moegeo_cli.scorings import find_scoring


def probabilities(logits_E: np.ndarray, scoring: str) -> np.ndarray:
    """The routing distribution, before top-k, renormalisation and selection bias.

    Args:
        logits_E: raw router logits, shape (..., E), finite.
        scoring: name of the scoring.

    Returns:
        Shape (..., E), float64, summing to 1 along the last axis.

    Raises:
        UnsupportedArchitectureError: an unknown scoring.
    """
    logs_E = find_scoring(scoring).log_score(np.asarray(logits_E, float))
    scores_E = np.exp(logs_E - logs_E.max(axis=-1, keepdims=True))
    return np.asarray(scores_E / scores_E.sum(axis=-1, keepdims=True))
