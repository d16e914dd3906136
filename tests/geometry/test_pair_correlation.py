"""Correlations over pairs: against scipy, against planted truth, and how sure they are."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from moegeo_cli.geometry.pair_correlation import (
    Items,
    PairSample,
    hidden_similarities,
    mean_absolute_correlations,
    permute_sequences,
    rank_alone,
    sample_pairs,
    usage_similarities,
)
from moegeo_cli.geometry.resample import Draws, Estimate, group_sequences, interval, make_draws

SEQUENCE = np.repeat(np.arange(6), [3, 1, 4, 2, 5, 3])


def correlate(
    one: np.ndarray, other: np.ndarray, groups: np.ndarray, draws: Draws
) -> tuple[Estimate, Estimate]:
    sample = PairSample(groups, draws)
    return sample.correlate(sample.rank(one), sample.rank(other))


@pytest.mark.parametrize("within", [True, False])
def test_every_pair_is_as_likely_as_any_other(within: bool) -> None:
    generator = np.random.default_rng(0)
    everything = sample_pairs(SEQUENCE, 10**6, generator, within=within)
    known = {(int(a), int(b)) for a, b in everything}
    assert known == {
        (a, b) for b in range(18) for a in range(b) if (SEQUENCE[a] == SEQUENCE[b]) == within
    }
    count = len(known) - 1  # one less than all: sampled
    seen: Counter[tuple[int, int]] = Counter()
    for _ in range(60_000 // count):
        for a, b in sample_pairs(SEQUENCE, count, generator, within=within):
            seen[min(int(a), int(b)), max(int(a), int(b))] += 1
    assert set(seen) == known
    expected = sum(seen.values()) / len(known)
    chi_square = sum((n - expected) ** 2 / expected for n in seen.values())
    assert chi_square < len(known) + 5 * np.sqrt(2 * len(known))


def some_pairs(count: int = 600, groups: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    one = generator.integers(0, 25, count).astype(float)  # with ties
    other = one + generator.integers(0, 30, count)
    return one, other, generator.integers(0, groups, (count, 2))


def test_correlations_are_scipys_and_leave_out_every_pair_of_a_group() -> None:
    one, other, groups = some_pairs()
    draws = make_draws(group_sequences(9))
    spearman, pearson = correlate(one, other, groups, draws)
    assert spearman.value == pytest.approx(spearmanr(one, other).statistic)
    assert pearson.value == pytest.approx(pearsonr(one, other).statistic)
    left = []
    for group in range(9):
        kept = (groups != group).all(axis=1)
        left.append(spearmanr(one[kept], other[kept]).statistic)
    influence = 8 * (np.mean(left) - np.array(left))
    expected = spearman.value + (draws.counts_BG - 1) @ influence / 9
    np.testing.assert_allclose(spearman.draws_B, expected, rtol=1e-9)


def test_what_does_not_vary_has_no_correlation() -> None:
    one, other, groups = some_pairs()
    draws = make_draws(group_sequences(9))
    for a, b, word in (
        (np.ones(600), other, "hidden similarity"), (one, np.ones(600), "usage"),
        (one[:5], other[:5], "fewer than"),
    ):  # fmt: skip
        found = correlate(a, b, groups[: len(a)], draws)
        assert [f.value for f in found] == [None, None]
        assert word in (found[0].reason or "")


def items(usage_of_x: bool, seed: int = 0, sequences: int = 40, each: int = 12) -> Items:
    """Tokens whose routing is softmax of a map of the hidden state, or that of another token."""
    generator = np.random.default_rng(seed)
    sequence = np.repeat(np.arange(sequences), each)
    x = (
        generator.normal(size=(len(sequence), 16))
        + generator.normal(size=(sequences, 16))[sequence]
    )
    weight = generator.normal(size=(6, 16)) * 0.7
    response = x @ (weight - weight.mean(0)).T
    routed = response if usage_of_x else response[generator.permutation(len(sequence))]
    p = np.exp(routed) / np.exp(routed).sum(1, keepdims=True)
    chosen = np.zeros_like(p)
    np.put_along_axis(chosen, np.argsort(-p, axis=1)[:, :2], 2**-0.5, axis=1)
    return Items(x, response, np.sqrt(p), chosen, sequence, group_sequences(sequences)[sequence])


def measured(own: Items, within: bool) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Spearman with the lower and upper end of its interval, by hidden and usage similarity."""
    generator = np.random.default_rng(0)
    draws = make_draws(group_sequences(40))
    pairs = sample_pairs(own.sequence_N, 4000, generator, within=within)
    hidden, usage = hidden_similarities(own, pairs), usage_similarities(own, pairs)
    found = {}
    for a, one in hidden.items():
        for b, other in usage.items():
            spearman, _ = correlate(one, other, own.group_N[pairs], draws)
            low, high = interval(spearman.draws_B, spearman.value)
            assert spearman.value is not None
            assert low is not None
            assert high is not None
            found[a, b] = (spearman.value, low, high)
    return found


@pytest.mark.parametrize("within", [True, False])
def test_routing_that_is_a_function_of_geometry_is_told_from_routing_that_is_not(
    within: bool,
) -> None:
    tied = measured(items(True), within)
    assert all(low > 0.15 for _, low, _ in tied.values())
    # What the router sees decides; the rest of the hidden state does not.
    for usage in ("distribution", "chosen"):
        assert tied["visible", usage][0] > tied["cosine", usage][0] + 0.1
    loose = measured(items(False), within)
    assert all(abs(value) < 0.08 for value, _, _ in loose.values())
    assert sum(low <= 0 <= high for _, low, high in loose.values()) >= 3


def test_similarities_are_those_of_loops() -> None:
    own = items(True, sequences=4, each=5)
    pairs = sample_pairs(own.sequence_N, 50, np.random.default_rng(0), within=False)
    hidden, usage = hidden_similarities(own, pairs), usage_similarities(own, pairs)
    assert own.response_NE is not None
    assert own.root_NE is not None
    for place, (i, j) in enumerate(pairs):
        x, y = own.x_ND[i], own.x_ND[j]
        cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        assert hidden["cosine"][place] == pytest.approx(cosine)
        assert hidden["visible"][place] == pytest.approx(own.response_NE[i] @ own.response_NE[j])
        inner = min(1.0, float(own.root_NE[i] @ own.root_NE[j]))
        assert usage["distribution"][place] == pytest.approx(1 - 2 * np.arccos(inner) / np.pi)
        both = (own.usage_NE[i] > 0) & (own.usage_NE[j] > 0)
        assert usage["chosen"][place] == pytest.approx(both.sum() / 2)


def test_sequences_are_means_of_their_items() -> None:
    own = items(True, sequences=5, each=6)
    chosen = np.ones(30, dtype=bool)
    chosen[:4] = False  # two are left of the first sequence
    part = Items(
        own.x_ND[chosen], None, own.root_NE[chosen] if own.root_NE is not None else None,
        own.usage_NE[chosen], own.sequence_N[chosen], own.group_N[chosen],
    )  # fmt: skip
    by = part.by_sequence(3)
    np.testing.assert_array_equal(by.sequence_N, [1, 2, 3, 4])
    np.testing.assert_array_equal(by.group_N, own.group_N[6::6])
    for place, sequence in enumerate(by.sequence_N):
        mine = own.sequence_N == sequence
        np.testing.assert_allclose(by.x_ND[place], own.x_ND[mine].mean(0))
        assert own.root_NE is not None
        assert by.root_NE is not None
        np.testing.assert_allclose(by.root_NE[place] ** 2, (own.root_NE[mine] ** 2).mean(0))
    assert by.response_NE is None


def test_dealt_sequences_stay_together() -> None:
    dealt = permute_sequences(SEQUENCE, np.random.default_rng(2))
    for sequence in range(6):
        other = SEQUENCE[dealt[sequence == SEQUENCE]]
        assert len(set(other)) == 1
        own = np.flatnonzero(sequence == SEQUENCE)
        start = np.flatnonzero(other[0] == SEQUENCE)
        expected = start[(own - own[0]) % len(start)]
        np.testing.assert_array_equal(dealt[own], expected)


def test_the_null_is_the_size_that_dealt_usage_shows() -> None:
    own = items(True)
    generator = np.random.default_rng(0)
    pairs = sample_pairs(own.sequence_N, 2000, generator, within=False)
    hidden = hidden_similarities(own, pairs)["visible"]
    deals = [permute_sequences(own.sequence_N, generator) for _ in range(20)]
    dealt = [usage_similarities(own, deal[pairs])["distribution"] for deal in deals]
    sizes = [abs(spearmanr(hidden, d).statistic) for d in dealt]
    found = mean_absolute_correlations(rank_alone(hidden), [rank_alone(d) for d in dealt])
    assert found[0] == pytest.approx(np.mean(sizes))
    sizes = [abs(pearsonr(hidden, d).statistic) for d in dealt]
    assert found[1] == pytest.approx(np.mean(sizes))
    flat = mean_absolute_correlations(rank_alone(hidden), [rank_alone(np.ones(2000))])
    assert flat == (0.0, 0.0)


def test_intervals_are_as_wide_as_resampling_whole_groups_makes_them() -> None:
    """Against the slow way: groups drawn, their pairs counted as often, everything ranked anew."""
    own = items(True, seed=5)
    pairs = sample_pairs(own.sequence_N, 1500, np.random.default_rng(0), within=False)
    groups = own.group_N[pairs]
    one = hidden_similarities(own, pairs)["cosine"]
    other = usage_similarities(own, pairs)["distribution"]
    draws = make_draws(group_sequences(40))
    small = Draws(draws.groups_S, draws.counts_BG[:300])
    spearman, _ = correlate(one, other, groups, small)
    slow = []
    for counts in small.counts_BG:
        weight = counts[groups[:, 0]] * counts[groups[:, 1]]
        repeated = np.repeat(np.arange(len(one)), weight.astype(int))
        slow.append(spearmanr(one[repeated], other[repeated]).statistic)
    assert spearman.draws_B is not None
    assert np.std(spearman.draws_B) == pytest.approx(np.std(slow), rel=0.3)


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """One router, many probes of 40 sequences; the truth is that of a very large probe."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(6, 16)) * 0.7
    weight = weight - weight.mean(0)

    def probe(sequences: int) -> Items:
        sequence = np.repeat(np.arange(sequences), 12)
        x = generator.normal(size=(len(sequence), 16))
        x += 0.8 * generator.normal(size=(sequences, 16))[sequence]
        response = x @ weight.T
        p = np.exp(response) / np.exp(response).sum(1, keepdims=True)
        groups = group_sequences(sequences)
        return Items(x, response, np.sqrt(p), p, sequence, groups[sequence])

    def spearman(own: Items, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = sample_pairs(own.sequence_N, count, generator, within=False)
        one = hidden_similarities(own, pairs)["cosine"]
        return one, usage_similarities(own, pairs)["distribution"], own.group_N[pairs]

    one, other, _ = spearman(probe(4000), 400_000)
    truth = spearmanr(one, other).statistic
    draws = make_draws(group_sequences(40))
    hits = 0
    for _ in range(300):
        estimate, _ = correlate(*spearman(probe(40), 4000), draws)
        low, high = interval(estimate.draws_B, estimate.value)
        assert low is not None
        assert high is not None
        hits += low <= truth <= high
    assert 0.88 <= hits / 300 <= 0.99
