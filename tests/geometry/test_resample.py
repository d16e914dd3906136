"""Groups, draws, and a simulation of how often the intervals hold the truth."""

from __future__ import annotations

import numpy as np
import pytest

from moegeo_cli.geometry.estimates import ratio_of_sums, routing_estimates
from moegeo_cli.geometry.resample import (
    GROUPS,
    Estimate,
    difference,
    group_sequences,
    interval,
    make_draws,
    mean_of,
    missing,
    ratio,
    worst_of,
)
from moegeo_cli.geometry.routing import measure_routing
from moegeo_cli.geometry.sums import RouterTokens


@pytest.mark.parametrize("count", [0, 1, 2, 31, 32, 33, 64, 65, 1000])
def test_groups_are_few_even_and_reproducible(count: int) -> None:
    groups = group_sequences(count, seed=3)
    np.testing.assert_array_equal(groups, group_sequences(count, seed=3))
    if count:
        sizes = np.bincount(groups)
        assert len(sizes) <= GROUPS
        assert sizes.min() >= 1
        assert sizes.max() - sizes.min() <= 1
        assert len(sizes) == count or len(sizes) > GROUPS // 2


def test_one_sequence_has_no_interval() -> None:
    draws = make_draws(group_sequences(1))
    estimate = ratio_of_sums(np.array([3.0]), np.array([2.0]), draws)
    assert estimate.value == 1.5
    assert interval(estimate.draws_B, estimate.value) == (None, None)


def test_sums_of_draws_are_what_repeating_the_groups_gives() -> None:
    draws = make_draws(group_sequences(40, 1), seed=2, count=7)
    values = np.random.default_rng(0).normal(size=40)
    by_group = [values[draws.groups_S == g].sum() for g in range(draws.groups)]
    expected = [sum(c * s for c, s in zip(row, by_group, strict=True)) for row in draws.counts_BG]
    np.testing.assert_allclose(draws.sum_draws(draws.sum_by_group(values)), expected)
    gram = np.random.default_rng(1).normal(size=(3, draws.groups, draws.groups))
    gram = gram + gram.transpose(0, 2, 1)
    quadratic = [[row @ g @ row for g in gram] for row in draws.counts_BG]
    np.testing.assert_allclose(draws.sum_quadratic(gram), quadratic, rtol=1e-10)


def test_combinations_go_draw_by_draw() -> None:
    a = Estimate(2.0, np.array([1.0, 2.0, 3.0]), 10)
    b = Estimate(4.0, np.array([2.0, 5.0, 5.0]), 8)
    np.testing.assert_allclose(difference(b, a).draws_B, [1, 3, 2])
    np.testing.assert_allclose(ratio(b, a).draws_B, [2, 2.5, 5 / 3])
    np.testing.assert_allclose(mean_of([a, b]).draws_B, [1.5, 3.5, 4])
    worst = worst_of([a, b], ["one", "two"])
    assert (worst.value, worst.router) == (4.0, "two")
    np.testing.assert_allclose(worst.draws_B, [2, 5, 5])


def test_a_router_without_a_value_is_said_not_counted_as_zero() -> None:
    known, unknown = Estimate(0.5, np.array([0.4, 0.6])), missing("not finite")
    combined = mean_of([known, unknown])
    assert combined.value == 0.5
    assert combined.reason == "1 of 2 routers have no value"
    assert mean_of([unknown]).value is None
    assert ratio(known, Estimate(0.0)).value is None


def simulate(generator: np.random.Generator, sequences: int) -> tuple[np.ndarray, RouterTokens]:
    """Sequences of unequal length, each with routing preferences of its own."""
    lengths = generator.integers(20, 61, sequences)
    own = generator.normal(size=(sequences, 4)) * 0.7 + np.array([0.6, 0.2, 0.0, -0.8])
    sequence_T = np.repeat(np.arange(sequences), lengths)
    logits = own[sequence_T] + generator.normal(size=(len(sequence_T), 4))
    loss_T = generator.gamma(2.0, 1.0, len(sequence_T)) + own[sequence_T, 0]
    selected = np.argsort(-logits, axis=1)[:, :1]
    tokens = RouterTokens(
        logits_TE=logits.astype(np.float32),
        selected_TK=selected.astype(np.int32),
        weights_TK=np.ones((len(logits), 1), dtype=np.float32),
        sequence_T=sequence_T,
        scoring="softmax",
        top_k=1,
    )
    return np.bincount(sequence_T, weights=loss_T), tokens


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95% intervals over clusters of tokens: between 90% and 98% of 300 simulated probes.

    Percentile intervals of 32 groups are known to run a little short of their level.
    """
    generator = np.random.default_rng(0)
    big_loss, big = simulate(generator, 20_000)
    names = ("fsi", "entropy_token", "collapse", "entropy_load", "max_violation")
    truth = {
        n: e.value
        for n, e in routing_estimates(
            measure_routing(big), make_draws(group_sequences(20_000), count=2)
        ).items()
        if n in names
    }
    truth["loss"] = float(big_loss.sum() / len(big.sequence_T))
    held = dict.fromkeys(truth, 0)
    runs = 300
    for run in range(runs):
        loss_S, tokens = simulate(generator, 96)
        draws = make_draws(group_sequences(96, run), run)
        sums = measure_routing(tokens)
        found = {n: e for n, e in routing_estimates(sums, draws).items() if n in names}
        found["loss"] = ratio_of_sums(loss_S, sums.sequence_tokens, draws)
        for name, estimate in found.items():
            low, high = interval(estimate.draws_B, estimate.value)
            assert low is not None
            assert high is not None
            held[name] += low <= (truth[name] or 0.0) <= high
    coverage = {name: count / runs for name, count in held.items()}
    print(coverage)
    assert all(0.90 <= share <= 0.98 for share in coverage.values()), coverage
