"""Alignments from random directions against exact ones; their null; what counts for a pair."""

from __future__ import annotations

import numpy as np
import pytest

from moegeo_cli.geometry.jacobian import (
    AlignmentSums,
    alignment_ratio,
    pair_weights,
    rotation_null,
    spectral_decay,
)
from moegeo_cli.geometry.resample import draws_from_jackknife, make_draws


def exact(jacobians_EOD: np.ndarray) -> np.ndarray:
    flat = jacobians_EOD.reshape(len(jacobians_EOD), -1)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return flat @ flat.T


def pushed(
    jacobians_EOD: np.ndarray, tokens: int, directions: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Products along random signs, as many independent tokens as asked for."""
    generator = np.random.default_rng(seed)
    v = generator.choice([-1.0, 1.0], (tokens, directions, jacobians_EOD.shape[2]))
    y = np.einsum("eod,tmd->tmeo", jacobians_EOD, v)
    return np.einsum("tmao,tmbo->tmab", y, y), np.einsum("tmeo,tmeo->tme", y, y)


def low_rank(seed: int) -> np.ndarray:
    """Three related Jacobians of few directions: where the ratio is most biased."""
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((6, 3)) @ generator.standard_normal((3, 10))
    return np.stack([common + s * generator.standard_normal((6, 10)) for s in (0.2, 0.8, 2.0)])


def test_exact_products_give_exact_cosines_without_error() -> None:
    jacobians = low_rank(0)
    flat = jacobians.reshape(3, -1)
    inner = (flat @ flat.T)[None, None]
    values, variance = alignment_ratio(inner, np.diagonal(inner, axis1=2, axis2=3),
                                       np.diagonal(inner, axis1=2, axis2=3))  # fmt: skip
    np.testing.assert_allclose(values[0], exact(jacobians), atol=1e-12)
    assert not variance.any()


def test_directions_are_unbiased_after_the_jackknife_and_their_error_is_true() -> None:
    jacobians = low_rank(1)
    tokens = 20_000
    inner, norm = pushed(jacobians, tokens, 4, 2)
    values, variance = alignment_ratio(inner, norm, norm)
    plain = inner.sum(1) / np.sqrt(norm.sum(1)[:, :, None] * norm.sum(1)[:, None, :])
    truth = exact(jacobians)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        left = abs(values[:, a, b].mean() - truth[a, b])
        assert left < 0.25 * abs(plain[:, a, b].mean() - truth[a, b]) + 3 * values[
            :, a, b
        ].std() / np.sqrt(tokens)
        spread = values[:, a, b].var()
        assert 0.5 < variance[:, a, b].mean() / spread < 2.5
    np.testing.assert_allclose(values[:, 0, 0], 1.0, atol=1e-9)


def test_a_zero_jacobian_counts_for_nothing() -> None:
    inner = np.array([[[[1.0, 0.0], [0.0, 0.0]]]])
    norm = np.array([[[1.0, 0.0]]])
    values, variance = alignment_ratio(inner, norm, norm)
    sums = AlignmentSums(1, 2)
    sums.add(np.zeros(1, dtype=int), np.ones((1, 2, 2)), values, variance)
    assert np.isnan(sums.mean_EE[0, 1])
    assert sums.mean_EE[0, 0] == 1.0
    assert sums.tokens_EE[0, 1] == 0


def test_random_rotations_align_within_one_over_the_width() -> None:
    generator = np.random.default_rng(3)
    width = 12
    turns = [np.linalg.qr(generator.standard_normal((width, width)))[0] for _ in range(400)]
    signs = generator.choice([-1.0, 1.0], (400, width))
    turns = [q * s for q, s in zip(turns, signs, strict=True)]
    found = [exact(np.stack(turns[i : i + 2]))[0, 1] for i in range(0, 400, 2)]
    assert np.mean(found) == pytest.approx(0, abs=3 * rotation_null(width) / np.sqrt(200))
    assert np.std(found) == pytest.approx(rotation_null(width), rel=0.2)


def test_which_tokens_count_for_a_pair() -> None:
    mass = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    routed = pair_weights(mass, "routed")
    assert routed[:, 0, 1].tolist() == [1, 1, 0]
    assert routed[:, 1, 2].tolist() == [0, 1, 0]
    assert pair_weights(mass, "coselected")[:, 0, 1].tolist() == [0, 1, 0]
    assert pair_weights(mass, "all").all()


def test_sums_are_weighted_means_with_draws_by_group() -> None:
    generator = np.random.default_rng(5)
    groups, tokens = 6, 60
    group_T = np.repeat(np.arange(groups), tokens // groups)
    weights = generator.random((tokens, 2, 2))
    values, variance = generator.standard_normal((tokens, 2, 2)), np.full((tokens, 2, 2), 0.04)
    sums = AlignmentSums(groups, 2)
    for part in (slice(0, 25), slice(25, tokens)):
        sums.add(group_T[part], weights[part], values[part], variance[part])
    w, v = weights[:, 0, 1], values[:, 0, 1]
    assert sums.mean_EE[0, 1] == pytest.approx((w * v).sum() / w.sum())
    assert sums.error_EE[0, 1] == pytest.approx(0.2 * np.sqrt((w**2).sum()) / w.sum())
    assert sums.tokens_EE[0, 1] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    draws = make_draws(np.arange(groups), 0)
    counts = draws.counts_BG[7][group_T]
    found = sums.draws_of(draws, np.array([0]), np.array([1]))[7, 0]
    assert found == pytest.approx((counts * w * v).sum() / (counts * w).sum())


def test_jackknife_draws_spread_like_the_bootstrap_they_stand_for() -> None:
    values_G = np.random.default_rng(6).standard_normal(24)
    draws = make_draws(np.arange(24), 0, count=4000)
    without = np.array([np.delete(values_G, g).mean() for g in range(24)])
    found = draws_from_jackknife(values_G.mean(), without, draws)
    assert found is not None
    np.testing.assert_allclose(found, draws.counts_BG @ values_G / 24, atol=1e-9)
    assert draws_from_jackknife(0.0, np.array([np.nan] * 24), draws) is None


def test_decay_is_the_exponent_of_a_power_law() -> None:
    assert spectral_decay(5 * np.arange(1, 9) ** -1.5) == pytest.approx(-1.5)
    assert spectral_decay(np.array([1.0, 0.0, 0.0])) is None
