"""Overlap over all pairs of tokens against a loop over them; chance that chance-level data meet."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from moegeo_cli.geometry import usage as module
from moegeo_cli.geometry.resample import Draws, group_sequences, make_draws
from moegeo_cli.geometry.usage import Usage

SEQUENCES, EXPERTS, SLOTS = 18, 7, 3


def some_usage(seed: int = 0, *, empty: bool = True) -> Usage:
    """Unequal sequences and loads, groups of two, empty slots, a token that chose nothing."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(2, 13, SEQUENCES)
    sequence = np.repeat(np.arange(SEQUENCES), lengths)
    scores = generator.gumbel(size=(len(sequence), EXPERTS)) + np.linspace(1.5, 0, EXPERTS)
    selected = np.argsort(-scores, axis=1)[:, :SLOTS]
    if empty:
        selected[generator.random(selected.shape) < 0.1] = -1
        selected[4] = -1
    return Usage(selected, sequence, group_sequences(SEQUENCES) // 2, EXPERTS)


def common(a: np.ndarray, b: np.ndarray) -> float:
    """Experts in common, as a share: of K where both choose K."""
    one, other = {int(e) for e in a if e >= 0}, {int(e) for e in b if e >= 0}
    return len(one & other) / math.sqrt(len(one) * len(other))


def mean_over_pairs(usage: Usage, counts: Callable[[int, int], bool]) -> float:
    values = [
        common(usage.selected_TK[i], usage.selected_TK[j])
        for i in range(len(usage.sequence_T))
        for j in range(i)
        if (usage.selected_TK[i] >= 0).any() and (usage.selected_TK[j] >= 0).any() and counts(i, j)
    ]
    return float(np.mean(values))


@pytest.mark.parametrize("piece", [1 << 22, 1])
def test_means_are_those_of_all_pairs(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    usage = some_usage()
    s = usage.sequence_T
    label = np.random.default_rng(1).integers(-1, 3, SEQUENCES)
    kind = np.random.default_rng(2).integers(0, 6, len(s))
    within, across = usage.labelled(label)
    for found, counts in (
        (usage.across_sequences, lambda i, j: s[i] != s[j]),
        (usage.within_sequences, lambda i, j: s[i] == s[j]),
        (usage.chance, lambda i, j: True),
        (within, lambda i, j: s[i] != s[j] and label[s[i]] == label[s[j]] >= 0),
        (across, lambda i, j: s[i] != s[j] and label[s[i]] != label[s[j]]
         and min(label[s[i]], label[s[j]]) >= 0),
        (usage.same_class(kind), lambda i, j: s[i] != s[j] and kind[i] == kind[j]),
    ):  # fmt: skip
        assert found.value == pytest.approx(mean_over_pairs(usage, counts), abs=1e-12)


def test_a_draw_is_what_repeating_its_groups_gives() -> None:
    """A group that is drawn twice pairs with itself only as a group, never a token with itself."""
    usage = some_usage()
    draws = make_draws(usage.groups_S, count=5)
    found = usage.across_sequences.draws_of(draws)
    assert found is not None
    s, group = usage.sequence_T, usage.groups_S
    for counts, value in zip(draws.counts_BG, found, strict=True):
        top = bottom = 0.0
        for i in range(len(s)):
            for j in range(len(s)):
                if s[i] == s[j] or 4 in (i, j):
                    continue
                a, b = group[s[i]], group[s[j]]
                weight = counts[a] * counts[b] if a != b else counts[a]
                top += weight * common(usage.selected_TK[i], usage.selected_TK[j])
                bottom += weight
        assert value == pytest.approx(top / bottom, abs=1e-12)


def test_the_uniform_chance_is_k_over_e() -> None:
    usage = some_usage(empty=False)
    assert usage.uniform_chance == pytest.approx(SLOTS / EXPERTS)
    generator = np.random.default_rng(0)
    rows = np.argsort(generator.random((4000, EXPERTS)), axis=1)
    sizes = generator.integers(1, SLOTS + 1, 4000)
    selected = np.where(np.arange(SLOTS) < sizes[:, None], rows[:, :SLOTS], -1)
    varied = Usage(selected, np.arange(4000), np.arange(4000) % 8, EXPERTS)
    assert varied.across_sequences.value == pytest.approx(varied.uniform_chance, abs=2e-3)


def test_above_chance_is_zero_in_the_mean_where_choices_say_nothing() -> None:
    """Choices dealt to tokens at random, with very unequal loads: no pairs stand above chance."""
    base = some_usage(3)
    kind = np.random.default_rng(4).integers(0, 6, len(base.sequence_T))
    draws = Draws(base.groups_S, np.zeros((0, int(base.groups_S.max()) + 1)))
    found = []
    for seed in range(400):
        order = np.random.default_rng(seed).permutation(len(base.sequence_T))
        usage = Usage(base.selected_TK[order], base.sequence_T, base.groups_S, EXPERTS)
        pairs = (usage.within_sequences, usage.across_sequences, usage.same_class(kind))
        found.append([p.above_chance(usage.chance, draws).value for p in pairs])
    means, errors = np.mean(found, axis=0), np.std(found, axis=0, ddof=1) / math.sqrt(400)
    assert (np.abs(means) < 3.5 * errors).all(), (means, errors)
    # The uniform chance would call the same data alike: loads are unequal.
    assert (base.chance.value or 0) - (base.uniform_chance or 0) > 0.02


def test_sequences_of_their_own_stand_above_chance_and_equal_tokens_have_none() -> None:
    sequence = np.repeat(np.arange(10), 6)
    apart = Usage((sequence % 5)[:, None], sequence, np.arange(10), 5)
    draws = make_draws(apart.groups_S)
    assert apart.within_sequences.above_chance(apart.chance, draws).value == pytest.approx(1.0)
    assert (apart.across_sequences.above_chance(apart.chance, draws).value or 0) < 0
    same = Usage(np.zeros((60, 1), dtype=int), sequence, np.arange(10), 5)
    found = same.within_sequences.above_chance(same.chance, draws)
    assert (found.value, found.reason) == (None, "all tokens choose the same experts")
    alone = Usage(np.zeros((10, 1), dtype=int), np.arange(10), np.arange(10), 5)
    assert alone.within_sequences.estimate(draws).reason == "no two tokens make such a pair"
