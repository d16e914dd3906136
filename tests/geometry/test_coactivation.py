"""Pairs chosen together: all of them counted, and the table that loads alone would give."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moegeo_cli.geometry.coactivation import (
    conditional,
    excess,
    excess_estimate,
    expected_counts,
    pair_counts,
)
from moegeo_cli.geometry.resample import group_sequences, make_draws

E, K, T = 8, 3, 3000


def choices(seed: int = 0) -> np.ndarray:
    """K of E by unequal odds, one after another."""
    generator = np.random.default_rng(seed)
    scores = generator.gumbel(size=(T, E)) + np.linspace(1.0, 0.0, E)
    return np.argsort(-scores, axis=1)[:, :K]


def test_all_pairs_are_counted_not_neighbours_alone() -> None:
    selected = choices()
    selected[np.random.default_rng(1).random(selected.shape) < 0.1] = -1
    counts = np.zeros((E, E))
    for row in selected:
        for a, b in itertools.permutations([e for e in row if e >= 0], 2):
            counts[a, b] += 1
    np.testing.assert_array_equal(pair_counts(selected, E), counts)
    neighbours = sum(int((selected[:, [k, k + 1]] >= 0).all(1).sum()) for k in range(K - 1))
    assert counts.sum() / 2 > 1.3 * neighbours
    tokens = np.array([(selected == e).any(1).sum() for e in range(E)])
    share = conditional(counts, tokens)
    assert np.isnan(share.diagonal()).all()
    expected = np.mean([(row == 2).any() for row in selected if (row == 5).any()])
    assert share[5, 2] == pytest.approx(expected)


def test_the_expected_table_has_the_loads_and_no_other_structure() -> None:
    counts = pair_counts(choices(), E)
    table = expected_counts(counts)
    np.testing.assert_allclose(table.sum(1), counts.sum(1), rtol=1e-6)
    assert not table.diagonal().any()
    # Quasi-independence: every 2 × 2 table off the diagonal has an odds ratio of 1.
    for a, b, c, d in ((0, 1, 2, 3), (4, 5, 6, 7), (0, 3, 5, 6)):
        assert table[a, c] * table[b, d] == pytest.approx(table[a, d] * table[b, c], rel=1e-9)
    assert expected_counts(np.zeros((E, E))).sum() == 0


def test_pairs_of_independent_slots_stay_at_their_null_and_planted_teams_do_not() -> None:
    group = np.arange(T) % 12
    draws = make_draws(group_sequences(12))
    generator = np.random.default_rng(3)
    rows, columns = np.triu_indices(E, 1)
    weight = np.linspace(1, 3, E)
    odds = weight[rows] * weight[columns]
    pairs = generator.choice(len(rows), T, p=odds / odds.sum())
    loose = np.stack([rows[pairs], columns[pairs]], axis=1)
    found, null = excess_estimate(loose, group, E, draws, 0)
    assert null is not None
    assert found.value == pytest.approx(null, rel=0.35)
    team = generator.integers(0, E // 2, T)
    found, null = excess_estimate(np.stack([2 * team, 2 * team + 1], axis=1), group, E, draws, 0)
    # E/2 of the E(E − 1)/2 pairs take all, where an even table gives each 1 of E − 1.
    assert found.value == pytest.approx(1 - 1 / (E - 1), abs=0.02)
    assert found.draws_B is not None
    assert np.std(found.draws_B) < 0.02


def test_one_choice_a_token_makes_no_pair() -> None:
    found, null = excess_estimate(
        choices()[:, :1], np.zeros(T, dtype=int), E, make_draws(group_sequences(12)), 0
    )
    assert (found.value, found.reason, null) == (None, "no token chooses two experts", None)
    assert np.isnan(excess(np.zeros((E, E))))
