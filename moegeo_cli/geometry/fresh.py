r"""Tests whether a weight matrix looks untrained, that is, whether its rows have random directions.

Independent entries of mean zero give rows whose directions are independent and nearly uniform, for
any scale and distribution of the entries. Training adds directions that many rows share, which
raises the squared cosines of pairs of rows.

Legend: R rows, C columns.
"""

from __future__ import annotations

import math

import numpy as np

MOST_ROWS = 128


def row_alignment(weight_RC: np.ndarray) -> float | None:
    r"""Excess of the squared cosines between rows over random directions, in standard deviations.

    .. math:: z = \frac{\sum_{i<j} (\cos^2_{ij} - 1/C)}{\sqrt{n\,\mathrm{Var}}},\quad
        \mathrm{Var} = \frac{3}{C(C+2)} - \frac{1}{C^2},\quad n = \frac{R(R-1)}{2}

    For uniform directions z has exactly mean 0 and variance 1, because squared cosines of
    different pairs are uncorrelated. Of more rows than `MOST_ROWS`, that many evenly spaced ones
    are used.

    Args:
        weight_RC: shape (R, C), any scale.

    Returns:
        z, without unit; None with fewer than two rows or columns, or if an entry is not finite.
        Rows of zeros are left out.

    Raises:
        ValueError: not a matrix.

    Source: moments of a coordinate of a uniform unit vector; the sum is the test of Schott (2005)
    for complete independence, with squared cosines in place of squared correlations.
    """
    rows = np.asarray(weight_RC)
    if rows.ndim != 2:
        raise ValueError(f"a matrix is needed, not shape {rows.shape}")
    if len(rows) > MOST_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(int)]
    largest = np.abs(rows).max(1, initial=0.0)
    if not np.isfinite(largest).all():
        return None
    rows = rows[largest > 0.0]
    count, columns = rows.shape
    if count < 2 or columns < 2:
        return None
    # Scaled by its largest entry first, so that no square overflows or vanishes.
    unit_RC = (rows / largest[largest > 0.0, None]).astype(np.float32)
    unit_RC /= np.linalg.norm(unit_RC, axis=1, keepdims=True)
    gram_RR = unit_RC @ unit_RC.T
    np.fill_diagonal(gram_RR, 0.0)
    pairs = count * (count - 1) / 2
    total = 0.5 * float(np.square(gram_RR, dtype=np.float64).sum())
    variance = 3.0 / (columns * (columns + 2.0)) - 1.0 / columns**2
    return float((total - pairs / columns) / math.sqrt(pairs * variance))


def combine_scores(scores: list[float]) -> float | None:
    """Combine independent scores of variance 1 into one of variance 1; None without any."""
    return sum(scores) / math.sqrt(len(scores)) if scores else None
