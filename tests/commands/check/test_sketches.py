"""Sketches: linear, and as long as what they are of, within what 64 numbers can tell."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moegeo_cli.commands.check.row_alignment import RowAlignment
from moegeo_cli.commands.check.sketches import (
    DIMENSIONS,
    distances,
    mean_distance,
    pack,
    sketch,
    unpack,
)
from tests.commands.check.recorded import piece_of

SIZES = (1, 63, 64, 1000, 4096 * 64 + 17)


@pytest.mark.parametrize("size", SIZES)
def test_a_sketch_is_linear(size: int) -> None:
    generator = np.random.default_rng(size)
    one, other = generator.normal(size=(2, size)).astype(np.float32)
    np.testing.assert_allclose(
        sketch(2 * one - other, "up"), 2 * sketch(one, "up") - sketch(other, "up"),
        atol=1e-3 * np.sqrt(size),
    )  # fmt: skip
    assert not sketch(np.zeros(size, np.float32), "up").any()


def test_squared_lengths_are_right_in_the_mean() -> None:
    generator = np.random.default_rng(0)
    shares = []
    for place in range(300):
        values = generator.normal(size=500).astype(np.float32)
        shares.append((sketch(values, f"role {place}") ** 2).sum() / (values**2).sum())
    error = np.std(shares) / np.sqrt(len(shares))
    assert np.mean(shares) == pytest.approx(1.0, abs=4 * error)
    assert np.std(shares) == pytest.approx(np.sqrt(2 / DIMENSIONS), rel=0.2), "9% of a length"


def test_one_entry_stands_in_one_bin_with_a_sign() -> None:
    for place in (0, 70, 999):
        values = np.zeros(1000, np.float32)
        values[place] = 3.0
        found = sketch(values, "up")
        assert np.flatnonzero(found).tolist() == [place % DIMENSIONS]
        assert abs(found[place % DIMENSIONS]) == 3.0


def test_roles_and_shapes() -> None:
    size = 4096 * 64 + 5
    values = np.random.default_rng(1).normal(size=size).astype(np.float32)
    np.testing.assert_array_equal(
        sketch(values[:60], "up"), sketch(values[:60].reshape(10, 6), "up")
    )
    ups, downs = sketch(values, "up"), sketch(values, "down")
    assert not np.allclose(ups, downs) or np.allclose(ups, -downs), "signs are the role's"


def test_text_and_back() -> None:
    sketches = [np.arange(DIMENSIONS) * 0.5, -np.ones(DIMENSIONS)]
    text = pack(sketches)
    assert text.isascii()
    np.testing.assert_array_equal(unpack(text), sketches)


def test_distances_are_those_of_differences_even_of_close_ones() -> None:
    generator = np.random.default_rng(2)
    held = 1e6 + generator.normal(size=(4, DIMENSIONS)) * 1e-3
    found = distances(held)
    for a, b in itertools.product(range(4), repeat=2):
        assert found[a, b] == pytest.approx(float(np.sqrt(((held[a] - held[b]) ** 2).sum())))


def test_the_mean_distance_is_1_for_independent_and_0_for_equal_experts() -> None:
    generator = np.random.default_rng(3)
    matrices = generator.normal(size=(24, 400)).astype(np.float32) * np.arange(1, 25)[:, None]
    sketches = np.array([sketch(m, "up") for m in matrices])
    norms = np.linalg.norm(matrices, axis=1)
    exact = np.mean([
        np.linalg.norm(matrices[a] - matrices[b]) / np.hypot(norms[a], norms[b])
        for a, b in itertools.combinations(range(24), 2)
    ])  # fmt: skip
    assert mean_distance(sketches, norms) == pytest.approx(exact, rel=0.05)
    assert exact == pytest.approx(1.0, abs=0.05)
    assert mean_distance(np.repeat(sketches[:1], 3, 0), np.repeat(norms[:1], 3)) == 0.0
    assert mean_distance(sketches[:1], norms[:1]) is None
    assert mean_distance(np.zeros((3, DIMENSIONS)), np.zeros(3)) is None
    some = mean_distance(np.vstack([np.zeros(DIMENSIONS), sketches[:1]]), np.array([0.0, norms[0]]))
    assert some == pytest.approx(np.linalg.norm(sketches[0]) / norms[0]), "a zero and one expert"


def aligned(weight: np.ndarray) -> float:
    """The score by its formula, pair by pair."""
    columns = weight.shape[1]
    squares = [
        (a @ b / np.linalg.norm(a) / np.linalg.norm(b)) ** 2
        for a, b in itertools.combinations(weight.astype(float), 2)
    ]
    variance = 3 / (columns * (columns + 2)) - 1 / columns**2
    return float((sum(squares) - len(squares) / columns) / np.sqrt(len(squares) * variance))


class Layer:
    """What the statistic asks of a layer: the numbers of its experts."""

    def __init__(self, *experts: int) -> None:
        self.experts = dict.fromkeys(experts)


def test_scores_of_an_experts_matrices_are_pooled() -> None:
    generator = np.random.default_rng(4)
    up, down, other = generator.normal(size=(3, 9, 5)).astype(np.float32)
    statistic = RowAlignment(Layer(0, 2))
    for expert, values, role in ((0, up, "up"), (0, down, "down"), (2, other, "up")):
        statistic.add(piece_of(expert, values, role))
    statistic.add(piece_of(2, np.ones(5, np.float32), "bias"))
    found = statistic.result()["expert"]
    assert found[0] == pytest.approx((aligned(up) + aligned(down)) / np.sqrt(2), abs=1e-3)
    assert found[1] is None, "an expert that the files lack"
    assert found[2] == pytest.approx(aligned(other), abs=1e-3)


def test_an_expert_with_a_matrix_that_is_not_finite_or_not_read_has_no_score() -> None:
    good = np.random.default_rng(5).normal(size=(9, 5)).astype(np.float32)
    bad = good.copy()
    bad[2, 2] = np.inf
    statistic = RowAlignment(Layer(0, 1))
    for expert, values in ((0, good), (0, bad), (1, None)):
        statistic.add(piece_of(expert, values))
    assert statistic.result() == {"expert": [None, None]}
    assert RowAlignment(Layer()).result() == {"expert": []}


def test_rows_that_share_a_direction_stand_far_above_random_ones() -> None:
    generator = np.random.default_rng(6)
    random = generator.normal(size=(40, 30)).astype(np.float32)
    statistic = RowAlignment(Layer(0, 1))
    statistic.add(piece_of(0, random))
    statistic.add(piece_of(1, random + 2 * generator.normal(size=30).astype(np.float32)))
    fresh, trained = statistic.result()["expert"]
    assert abs(fresh) < 4 < 40 < trained
