"""Distances on the simplex against fifty digits, and the rules that a distance keeps."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moegeo_cli.geometry.simplex import distance, distance_max, distance_reachable, entropy

weights = hnp.arrays(
    np.float64, st.integers(2, 12), elements=st.floats(1e-12, 1.0, allow_subnormal=False)
)


def exact_distance(p: np.ndarray, q: np.ndarray) -> mpmath.mpf:
    with mpmath.workdps(50):
        a = [mpmath.mpf(float(v)) for v in p]
        b = [mpmath.mpf(float(v)) for v in q]
        a, b = [v / sum(a) for v in a], [v / sum(b) for v in b]
        return 2 * mpmath.acos(sum(mpmath.sqrt(x * y) for x, y in zip(a, b, strict=True)))


@pytest.mark.parametrize("gap", [1e-1, 1e-4, 1e-7, 1e-10])
def test_small_distances_keep_their_digits(gap: float) -> None:
    p = np.array([0.5, 0.3, 0.2])
    q = np.array([0.5 + gap, 0.3 - gap, 0.2])
    assert float(distance(p, q)) == pytest.approx(float(exact_distance(p, q)), rel=1e-5)


@given(weights, st.randoms(use_true_random=False))
def test_distance_agrees_with_fifty_digits(w: np.ndarray, random: object) -> None:
    p = w / w.sum()
    q = np.roll(p, 1)
    assert float(distance(p, q)) == pytest.approx(float(exact_distance(p, q)), abs=1e-7, rel=1e-7)


@given(hnp.arrays(np.float64, (3, 6), elements=st.floats(1e-6, 1.0)))
def test_distance_is_a_metric(rows: np.ndarray) -> None:
    p, q, r = rows / rows.sum(axis=1, keepdims=True)
    assert float(distance(p, p)) == 0.0
    assert float(distance(p, q)) == pytest.approx(float(distance(q, p)), abs=1e-15)
    assert float(distance(p, r)) <= float(distance(p, q)) + float(distance(q, r)) + 1e-12


def test_known_distances() -> None:
    corner, other = np.eye(4)[0], np.eye(4)[1]
    uniform = np.full(4, 0.25)
    assert float(distance(corner, other)) == pytest.approx(math.pi)
    assert float(distance(corner, uniform)) == pytest.approx(distance_max(4))
    pair = np.array([0.5, 0.5, 0.0, 0.0])
    assert float(distance(pair, uniform)) == pytest.approx(distance_reachable(4, 2))


def test_distance_broadcasts_over_leading_axes() -> None:
    rows = np.random.default_rng(0).dirichlet(np.ones(5), size=(3, 4))
    uniform = np.full(5, 0.2)
    assert distance(rows, uniform).shape == (3, 4)
    assert distance(rows, uniform)[2, 1] == pytest.approx(float(distance(rows[2, 1], uniform)))


def test_entropy_counts_empty_cells_as_nothing() -> None:
    assert float(entropy(np.array([1.0, 0.0]))) == 0.0
    assert float(entropy(np.full(8, 1 / 8))) == pytest.approx(math.log(8))
