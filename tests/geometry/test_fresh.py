"""Fresh matrices score as the null says, whatever they are drawn from; shared directions show."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moegeo_cli.geometry.fresh import MOST_ROWS, combine_scores, row_alignment

DRAWS = {
    "normal": lambda rng, shape: rng.normal(0.0, 0.02, shape),
    "uniform": lambda rng, shape: rng.uniform(-0.1, 0.1, shape),
    "truncated": lambda rng, shape: np.clip(rng.normal(0.0, 1.0, shape), -2.0, 2.0),
}


def slow(weight: np.ndarray) -> float:
    """The definition, pair by pair."""
    columns = weight.shape[1]
    squares = [
        float(a @ b) ** 2 / float((a @ a) * (b @ b))
        for a, b in itertools.combinations(weight.astype(np.float64), 2)
    ]
    one = 3 / (columns * (columns + 2)) - 1 / columns**2
    return (sum(squares) - len(squares) / columns) / math.sqrt(len(squares) * one)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (8, 40), (40, 8), (30, 30)])
def test_it_is_the_definition(rows: int, columns: int) -> None:
    weight = np.random.default_rng(rows).normal(0.3, 1.0, (rows, columns)).astype(np.float32)
    assert row_alignment(weight) == pytest.approx(slow(weight), rel=1e-4, abs=1e-4)
    assert row_alignment(weight * 1e30) == pytest.approx(slow(weight), rel=1e-4, abs=1e-4)
    assert row_alignment(weight * np.float32(1e-30)) == pytest.approx(
        slow(weight), rel=1e-4, abs=1e-4
    )


@pytest.mark.parametrize("draw", sorted(DRAWS))
@pytest.mark.parametrize(("rows", "columns"), [(16, 24), (48, 64), (300, 96)])
def test_fresh_matrices_have_mean_zero_and_variance_one(draw: str, rows: int, columns: int) -> None:
    rng = np.random.default_rng(7)
    scores = np.array([row_alignment(DRAWS[draw](rng, (rows, columns))) for _ in range(300)])
    assert abs(scores.mean()) < 4 / math.sqrt(len(scores)) + 0.15
    assert 0.75 < scores.std() < 1.25


def test_a_direction_that_rows_share_shows() -> None:
    rng = np.random.default_rng(0)
    fresh = rng.normal(0.0, 0.02, (64, 48))
    shared = fresh + 0.02 * np.outer(rng.normal(size=64), rng.normal(size=48)) * 0.5
    assert row_alignment(shared) > 10 > 4 > abs(row_alignment(fresh))


def test_of_many_rows_some_are_taken() -> None:
    weight = np.random.default_rng(1).normal(size=(4 * MOST_ROWS + 3, 32))
    taken = weight[np.linspace(0, len(weight) - 1, MOST_ROWS).round().astype(int)]
    assert row_alignment(weight) == row_alignment(taken)


def test_what_cannot_be_told() -> None:
    weight = np.random.default_rng(2).normal(size=(6, 5))
    assert row_alignment(weight[:1]) is None
    assert row_alignment(weight[:, :1]) is None
    broken = weight.copy()
    broken[2, 2] = np.nan
    assert row_alignment(broken) is None
    padded = np.concatenate([weight, np.zeros((3, 5))])
    assert row_alignment(padded) == row_alignment(weight)
    assert row_alignment(np.zeros((4, 4))) is None
    assert combine_scores([]) is None
    assert combine_scores([1.0, 3.0]) == pytest.approx(4 / math.sqrt(2))
