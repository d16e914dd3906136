r"""Distances and entropies of distributions, on the simplex with its Fisher-Rao metric.

With this metric the simplex is a part of a sphere of radius 2.

Legend: E experts. Leading axes are free.
"""

from __future__ import annotations

import math

import numpy as np


def distance(p_E: np.ndarray, q_E: np.ndarray) -> np.ndarray:
    r"""Fisher-Rao distance between distributions along the last axis.

    .. math:: d(p, q) = 2 \arccos \sum_e \sqrt{p_e q_e} = 4 \arcsin(\tfrac12 \|\sqrt p - \sqrt q\|)

    The second form is used: near zero it stays accurate, while the first gives noise or NaN.

    Args:
        p_E: shape (..., E), non-negative, summing to 1.
        q_E: likewise; leading axes broadcast.

    Returns:
        Shape (...), between 0 and π: the length of an arc on the sphere of radius 2.

    Source: Rao (1945); the second form is from the chord of the sphere of square roots.
    """
    return distance_from_roots(np.sqrt(np.asarray(p_E, float)), np.sqrt(np.asarray(q_E, float)))


def distance_from_roots(root_p_E: np.ndarray, root_q_E: np.ndarray) -> np.ndarray:
    """Fisher-Rao distance from the square roots of two distributions; see `distance`."""
    gap = np.asarray(root_p_E, float) - np.asarray(root_q_E, float)
    return distance_from_squared_chord(np.einsum("...e,...e->...", gap, gap))


def distance_from_squared_chord(squared: np.ndarray) -> np.ndarray:
    """Fisher-Rao distance from ‖√p − √q‖²; see `distance`."""
    return np.asarray(4.0 * np.arcsin(np.minimum(0.5 * np.sqrt(squared), 1.0)))


def distance_max(experts: int) -> float:
    """Largest Fisher-Rao distance of a distribution over E experts from uniform: 2 arccos(1/√E)."""
    return 2.0 * math.acos(1.0 / math.sqrt(experts))


def distance_reachable(experts: int, top_k: int) -> float:
    """Largest distance of a load from uniform if tokens choose K of E experts: 2 arccos √(K/E)."""
    return 2.0 * math.acos(math.sqrt(top_k / experts))


def entropy(p_E: np.ndarray) -> np.ndarray:
    """Entropy along the last axis in nats, with 0 ln 0 = 0."""
    p_E = np.asarray(p_E, float)
    logs_E = np.log(p_E, out=np.zeros_like(p_E), where=p_E > 0)
    return np.asarray(-np.einsum("...e,...e->...", p_E, logs_E))
