"""A planted shared direction, its response in closed form, and what no softmax can see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moegeo_cli.geometry.resample import Draws, Estimate, group_sequences, make_draws
from moegeo_cli.geometry.shared_direction import (
    MeanSums,
    SharedDirection,
    centre_rows,
    row_space,
)

E, D, N, SEQUENCES = 5, 24, 6000, 60
GROUPS = group_sequences(SEQUENCES)
DRAWS = make_draws(GROUPS)
SEQUENCE = np.sort(np.random.default_rng(9).integers(0, SEQUENCES, N))


def unit(seed: int, width: int = D) -> np.ndarray:
    v = np.random.default_rng(seed).normal(size=width)
    return np.asarray(v / np.linalg.norm(v))


def shared(x: np.ndarray, weight: np.ndarray, draws: Draws = DRAWS) -> SharedDirection:
    rows = centre_rows(weight)
    return SharedDirection(x, GROUPS[SEQUENCE], rows, row_space(rows, centred=True), draws)


def value(estimate: Estimate) -> float:
    assert estimate.value is not None, estimate.reason
    return estimate.value


def inputs(strength: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(N, D))
    return (strength * unit(1) + noise).astype(np.float32)


@pytest.mark.parametrize("gain", [0.0, 0.5, 3.0])
def test_a_planted_direction_has_the_response_of_its_rows(gain: float) -> None:
    """Rows = random ones without the shared direction, plus `gain` of it in one centred pattern."""
    direction, pattern = unit(1), unit(2, E)
    pattern = pattern - pattern.mean()
    rest = np.random.default_rng(3).normal(size=(E, D)) * 0.3
    rest -= np.outer(rest @ direction, direction)
    weight = rest + gain * np.outer(pattern, direction)
    x = inputs(4.0)
    own = shared(x, weight)
    # Sampling turns the mean by about √24 / (4 √6000) radian; rows answer to that by their size.
    error = 0.016 * np.linalg.norm(weight)
    assert value(own.response()) == pytest.approx(gain * np.linalg.norm(pattern), abs=error)
    frobenius = np.linalg.norm(centre_rows(weight)) / math.sqrt(D)
    assert own.random_response == pytest.approx(frobenius)
    relative = value(own.relative_response())
    assert relative == pytest.approx(value(own.response()) / frobenius)
    energy, null = own.energy()
    assert value(energy) == pytest.approx(16 / (16 + D), abs=0.01)
    assert null is not None
    assert 0.3 / N < null < 3 * D / N


def test_everything_is_what_its_definition_gives() -> None:
    x = inputs(1.5)
    x[:, 0] *= 3
    weight = np.random.default_rng(4).normal(size=(E, D))
    own, rows = shared(x, weight), centre_rows(weight)
    mean = x.astype(float).mean(0)
    assert value(own.response()) == pytest.approx(
        np.linalg.norm(rows @ mean / np.linalg.norm(mean))
    )
    squares = (x.astype(float) ** 2).sum(1).mean()
    assert value(own.energy()[0]) == pytest.approx(mean @ mean / squares)
    covariance = np.cov(x.astype(float).T, bias=True)
    basis = np.linalg.qr(rows.T)[0][:, : E - 1]
    expected = np.trace(basis.T @ covariance @ basis) / np.trace(covariance)
    assert value(own.row_space_share()) == pytest.approx(expected)
    values, vectors = np.linalg.eigh(covariance)
    order = np.argsort(-values)
    count = int(np.searchsorted(np.cumsum(values[order]), mean @ mean)) + 1
    leading = vectors[:, order[:count]]
    gains = ((rows @ leading) ** 2).sum(0)
    expected = math.sqrt(gains @ values[order[:count]] / values[order[:count]].sum())
    assert value(own.principal_response(N)) == pytest.approx(expected, rel=1e-6)


def test_draws_are_what_repeating_groups_gives() -> None:
    x = inputs(1.0)
    weight = np.random.default_rng(4).normal(size=(E, D))
    few = Draws(GROUPS, DRAWS.counts_BG[:4])
    own, group = shared(x, weight, few), GROUPS[SEQUENCE]
    for place, counts in enumerate(few.counts_BG):
        rows = np.repeat(np.arange(N), counts[group].astype(int))
        again = SharedDirection(x[rows], group[rows], own.weight_ED, own.basis_DR, few)
        for name in ("response", "relative_response", "row_space_share"):
            drawn = getattr(own, name)().draws_B
            assert drawn[place] == pytest.approx(value(getattr(again, name)()), rel=1e-6)
        drawn = own.energy()[0].draws_B
        assert drawn is not None
        assert drawn[place] == pytest.approx(value(again.energy()[0]), rel=1e-6)


def test_one_vector_added_to_every_row_changes_nothing() -> None:
    x = inputs(2.0)
    weight = np.random.default_rng(5).normal(size=(E, D)).astype(np.float32)
    shifted = (weight + 3.0 * np.random.default_rng(6).normal(size=D)).astype(np.float32)
    one, other = shared(x, weight), shared(x, shifted)
    assert one.basis_DR.shape == other.basis_DR.shape == (D, E - 1)
    for name in ("response", "relative_response", "row_space_share"):
        before, after = value(getattr(one, name)()), value(getattr(other, name)())
        assert after == pytest.approx(before, rel=1e-5)
    principal = [value(s.principal_response(500)) for s in (one, other)]
    assert principal[1] == pytest.approx(principal[0], rel=1e-5)


def test_a_random_subspace_holds_its_share_and_random_directions_their_gain() -> None:
    shares, relatives = [], []
    for seed in range(40):
        generator = np.random.default_rng([7, seed])
        weight = generator.normal(size=(E, D))
        mean = 3.0 * generator.normal(size=D)
        own = shared((mean + generator.normal(size=(N, D))).astype(np.float32), weight)
        shares.append(value(own.row_space_share()))
        relatives.append(value(own.relative_response()) ** 2)
    assert np.mean(shares) == pytest.approx((E - 1) / D, rel=0.02)
    assert np.mean(relatives) == pytest.approx(1.0, abs=0.25)


def test_rows_that_are_all_the_same_answer_to_nothing() -> None:
    own = shared(inputs(1.0), np.tile(unit(8), (E, 1)))
    assert own.basis_DR.shape == (D, 0)
    assert own.response().reason == "all rows of the router are the same"
    assert value(own.row_space_share()) == 0.0


def test_the_share_of_the_mean_has_the_null_of_clustered_rows() -> None:
    """Mean zero in truth, rows that come in clusters: the null is as large as what is seen."""
    seen, nulls = [], []
    for seed in range(200):
        generator = np.random.default_rng([8, seed])
        rows = generator.normal(size=(N, 3)) + 2.0 * generator.normal(size=(SEQUENCES, 3))[SEQUENCE]
        share, null = MeanSums.of(rows, GROUPS[SEQUENCE], DRAWS.groups).share_of_mean(DRAWS)
        assert null is not None
        seen.append(value(share))
        nulls.append(null)
    assert np.mean(nulls) == pytest.approx(np.mean(seen), rel=0.15)
