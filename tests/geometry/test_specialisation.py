"""Domains and vocabularies: planted ones are found, none where there is none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.geometry.specialisation import (
    LEAST_OCCURRENCES,
    domain_overlap,
    domain_specialisation,
    domain_table,
    label_gap,
    p_value,
    permute_labels,
    vocabulary_specialisation,
)
from moegeo_cli.geometry.usage import Usage
from tests.geometry.test_usage import common

S, E, K = 24, 8, 2
GROUPS = group_sequences(S)
DRAWS = make_draws(GROUPS)
LABELS = np.arange(S) % 3


def usage_of(leaning: float, seed: int = 0, own: float = 0.7) -> Usage:
    """Sequences of unequal length with tastes of their own; `leaning` to experts of the domain."""
    generator = np.random.default_rng(seed)
    sequence = np.repeat(np.arange(S), generator.integers(8, 40, S))
    taste = own * generator.normal(size=(S, E)) + np.linspace(1, 0, E)
    for domain in range(3):
        taste[domain == LABELS, 2 * domain : 2 * domain + 2] += leaning
    scores = taste[sequence] + generator.gumbel(size=(len(sequence), E))
    return Usage(np.argsort(-scores, axis=1)[:, :K], sequence, GROUPS, E)


def test_planted_domains_are_found_and_their_gap_is_that_of_loops() -> None:
    usage = usage_of(2.0)
    within, across, gap, null, p = domain_overlap(usage, LABELS, DRAWS, 0)
    s = usage.sequence_T
    values: dict[bool, list[float]] = {True: [], False: []}
    every = []
    for i, j in itertools.combinations(range(len(s)), 2):
        value = common(usage.selected_TK[i], usage.selected_TK[j])
        every.append(value)
        if s[i] != s[j]:
            values[bool(LABELS[s[i]] == LABELS[s[j]])].append(value)
    chance = np.mean(every)
    expected = [(np.mean(values[same]) - chance) / (1 - chance) for same in (True, False)]
    assert [within.value, across.value] == pytest.approx(expected, abs=1e-9)
    assert gap.value == pytest.approx(expected[0] - expected[1], abs=1e-9)
    assert p == pytest.approx(1 / 1000)
    assert null is not None
    assert abs(null) < 0.01
    table = domain_table(usage, LABELS, 3)
    for a in range(3):
        found = [
            common(usage.selected_TK[i], usage.selected_TK[j])
            for i, j in itertools.combinations(range(len(s)), 2)
            if s[i] != s[j] and {int(LABELS[s[i]]), int(LABELS[s[j]])} == {a, 2}
        ]
        assert table[a, 2] == pytest.approx((np.mean(found) - chance) / (1 - chance), abs=1e-9)
    assert table.diagonal().min() > table[~np.eye(3, dtype=bool)].max()


def test_labels_without_meaning_have_a_gap_of_zero_and_even_p_values() -> None:
    """Sequences with strong tastes and labels that say nothing: tokens dealt would find domains."""
    found, gaps = [], []
    for seed in range(150):
        usage = usage_of(0.0, seed, own=1.5)
        labels = LABELS[np.random.default_rng(seed).permutation(S)]
        null = label_gap(usage.sums, permute_labels(labels, 199, seed))
        value = float(label_gap(usage.sums, labels[None])[0])
        found.append(p_value(value, null))
        gaps.append(value)
    assert abs(np.mean(gaps)) < 3.5 * np.std(gaps) / math.sqrt(150)
    counts, _ = np.histogram(found, bins=5, range=(0, 1))
    assert counts.sum() == 150
    assert ((counts - 30) ** 2 / 30).sum() < 18.5  # the 0.1% point of χ² with 4 degrees
    assert 0 < np.mean(np.array(found) <= 0.05) + 0.02 < 0.14


def test_sequences_without_a_label_are_in_no_pair() -> None:
    usage, labels = usage_of(2.0), LABELS.copy()
    labels[::4] = -1
    kept = labels[usage.sequence_T] >= 0
    part = usage.part(kept)
    one = label_gap(usage.sums, labels[None])
    other = label_gap(part.sums, np.where(labels >= 0, labels, -1)[None])
    assert one[0] == pytest.approx(other[0])
    assert (permute_labels(labels, 5, 0)[:, ::4] == -1).all()


def test_domain_specialisation_is_the_mean_distance_of_loads() -> None:
    usage = usage_of(2.0)
    found, null = domain_specialisation(usage, LABELS, DRAWS, 0)
    load = np.bincount(usage.selected_TK.ravel(), minlength=E) / usage.selected_TK.size
    distances = []
    for domain in range(3):
        own = usage.selected_TK[LABELS[usage.sequence_T] == domain].ravel()
        distances.append(0.5 * np.abs(np.bincount(own, minlength=E) / len(own) - load).sum())
    assert found.value == pytest.approx(np.mean(distances))
    assert null is not None
    assert null < 0.6 * np.mean(distances)
    loose, null = domain_specialisation(usage_of(0.0), LABELS, DRAWS, 0)
    assert loose.value == pytest.approx(null, rel=0.5)


def test_vocabulary_specialisation_leaves_rare_ids_out_and_knows_its_null() -> None:
    usage = usage_of(0.0)
    generator = np.random.default_rng(1)
    tokens = generator.integers(0, 20, len(usage.sequence_T))
    rare = generator.random(len(tokens)) < 0.2
    tokens[rare] = 1000 + np.arange(rare.sum())  # singletons would all score 1
    found, null = vocabulary_specialisation(usage, tokens, DRAWS, 0)
    shares = []
    for token in np.unique(tokens):
        own = usage.selected_TK[tokens == token]
        if len(own) >= LEAST_OCCURRENCES:
            shares.append(np.bincount(own.ravel(), minlength=E).max() / len(own))
    assert found.value == pytest.approx(np.mean(shares))
    assert found.n == len(shares)
    assert null == pytest.approx(np.mean(shares), abs=0.06)  # ids say nothing here
    chosen = np.stack([tokens % E, (tokens + 1) % E], axis=1)
    told, null = vocabulary_specialisation(
        Usage(chosen, usage.sequence_T, GROUPS, E), tokens, DRAWS, 0
    )
    assert told.value == 1.0
    assert null is not None
    assert null < 0.8
    none, _ = vocabulary_specialisation(usage, np.arange(len(tokens)), DRAWS, 0)
    assert none.reason == "no token id occurs 16 times"
