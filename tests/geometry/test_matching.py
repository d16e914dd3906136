"""Experts matched by their weights: kin are told from strangers, whatever their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from moegeo_cli.geometry.matching import match_experts

E, W = 8, 4096


def experts(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(E, W)).astype(np.float32)


def test_a_tuned_copy_is_kin_and_renumbering_is_seen() -> None:
    own = experts(0)
    tuned = own + 0.5 * experts(1)
    found = match_experts(own, tuned)
    assert found is not None
    assert found.related
    assert not found.renumbered
    assert found.matched == pytest.approx(1 / np.sqrt(1.25), abs=0.02)
    order = np.random.default_rng(2).permutation(E)
    moved = match_experts(own, tuned[order])
    assert moved is not None
    assert moved.related
    assert moved.renumbered
    np.testing.assert_array_equal(order[moved.partner_E], np.arange(E))


def test_strangers_are_not_kin_however_they_are_matched() -> None:
    scores = []
    for seed in range(200):
        found = match_experts(experts(2 * seed), experts(2 * seed + 1))
        assert found is not None
        assert not found.related
        scores.append(found.score)
    assert abs(np.mean(scores)) < 0.25  # judged on weights that the matching did not see
    assert max(scores) < 4


def test_experts_of_one_dense_layer_resemble_others_as_much_as_their_counterparts() -> None:
    dense = np.random.default_rng(0).normal(size=W)
    one, other = (dense + 0.3 * experts(seed) for seed in (1, 2))
    found = match_experts(one, other)
    assert found is not None
    assert found.matched > 0.9
    assert not found.related


def test_what_cannot_be_compared_gives_nothing() -> None:
    assert match_experts(experts(0), experts(1)[:, :50]) is None
    broken = experts(0)
    broken[2, 3] = np.nan
    assert match_experts(broken, experts(1)) is None
