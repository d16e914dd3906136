"""Prompts and continuations: planted ties are found, and what the domain explains is told apart."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moegeo_cli.geometry.pair_means import SequenceSums
from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.geometry.rollout import compare_parts
from moegeo_cli.geometry.usage import Usage

S, E, K = 40, 6, 2
GROUPS = group_sequences(S)
DRAWS = make_draws(GROUPS)
DOMAINS = np.arange(S) % 2


def parts(own: float, domain: float, seed: int = 0) -> tuple[SequenceSums, SequenceSums]:
    """Means of prompts and continuations of unequal length, from tastes that both share."""
    generator = np.random.default_rng(seed)
    taste = own * generator.normal(size=(S, E)) + np.linspace(1, 0, E)
    taste[DOMAINS == 0, :2] += domain
    found = []
    for _ in range(2):
        sequence = np.repeat(np.arange(S), generator.integers(6, 30, S))
        scores = taste[sequence] + generator.gumbel(size=(len(sequence), E))
        found.append(Usage(np.argsort(-scores, 1)[:, :K], sequence, GROUPS, E).means)
    return found[0], found[1]


def test_own_continuations_against_loops_over_sequences() -> None:
    prompt, after = parts(1.0, 1.0)
    found = compare_parts(prompt, after, DOMAINS, DRAWS, 0)
    p, c = prompt.sums_SE, after.sums_SE
    pairs = list(itertools.permutations(range(S), 2))
    others = np.mean([p[a] @ c[b] for a, b in pairs])
    own = np.mean([p[a] @ c[a] for a in range(S)])
    same = np.mean([p[a] @ c[b] for a, b in pairs if DOMAINS[a] == DOMAINS[b]])
    assert found.own.value == pytest.approx((own - others) / (1 - others))
    assert found.same_domain.value == pytest.approx((same - others) / (1 - others))
    dp, dc = p - p.mean(0), c - c.mean(0)
    expected = (dp * dc).sum() / math.sqrt((dp**2).sum() * (dc**2).sum())
    assert found.correlation.value == pytest.approx(expected)
    assert found.correlation.draws_B is not None
    for counts, value in zip(DRAWS.counts_BG[:5], found.correlation.draws_B, strict=False):
        rows = np.repeat(np.arange(S), counts[GROUPS].astype(int))
        dp, dc = p[rows] - p[rows].mean(0), c[rows] - c[rows].mean(0)
        expected = (dp * dc).sum() / math.sqrt((dp**2).sum() * (dc**2).sum())
        assert value == pytest.approx(expected)


def test_what_the_domain_explains_is_told_from_what_the_prompt_does() -> None:
    tied = compare_parts(*parts(1.2, 0.0), DOMAINS, DRAWS, 0)
    assert tied.p_value == pytest.approx(1 / 1000)
    assert (tied.own.value or 0) > 0.08 > abs(tied.same_domain.value or 0) + 0.05
    by_domain = compare_parts(*parts(0.0, 2.5), DOMAINS, DRAWS, 0)
    assert by_domain.own.value == pytest.approx(by_domain.same_domain.value or 0, abs=0.03)
    assert (by_domain.own.value or 0) > 0.08
    loose = [compare_parts(*parts(0.0, 0.0, seed), DOMAINS, DRAWS, 0) for seed in range(40)]
    values = [found.own.value or 0 for found in loose]
    assert abs(np.mean(values)) < 3.5 * np.std(values) / math.sqrt(40)
    assert np.mean([(found.p_value or 0) < 0.1 for found in loose]) < 0.3
    assert max(abs(found.correlation.value or 0) for found in loose) < 0.3


def test_too_few_sequences_and_no_domains_say_so() -> None:
    prompt, after = parts(1.0, 0.0)
    few = np.arange(S) < 5
    found = compare_parts(prompt.only(few), after, DOMAINS, DRAWS, 0)
    assert found.own.reason == "fewer than 8 sequences have a prompt and a continuation"
    assert found.p_value is None
    found = compare_parts(prompt, after, np.full(S, -1), DRAWS, 0)
    assert found.same_domain.reason == "fewer than two domains are named"
    assert found.own.value is not None
    same = SequenceSums(np.ones((S, E)) / E, np.ones(S))
    assert compare_parts(same, after, DOMAINS, DRAWS, 0).correlation.value is None
