"""One router's record: domains, pairs of experts, and pairs of tokens against scipy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from moegeo_cli.commands.routing.layers import (
    Domains,
    MeasuredRouter,
    measure_pairs,
    measure_router,
)
from moegeo_cli.commands.routing.record import UNITS
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.geometry.usage import Usage
from tests.commands.routing.recorded import (
    DOMAINS,
    DRAWS,
    LABELS_S,
    SEQUENCE_T,
    above,
    chosen_of,
    gather,
    mean_overlap,
    replaced,
    tokens_of,
)
from tests.traces import EXPERTS, WIDTH, trace_of

SETTINGS = RoutingSettings()
NO_PROMPT = "no sequence has a prompt"


@pytest.fixture(scope="module")
def tokens() -> RoutedTokens:
    return tokens_of(1)


@pytest.fixture(scope="module")
def measured(tokens: RoutedTokens) -> MeasuredRouter:
    return measure_router(tokens, NO_PROMPT, {}, Domains.of(DOMAINS), DRAWS, SETTINGS)


def test_domains_are_numbered_by_name() -> None:
    found = Domains.of(DOMAINS)
    assert found.names == ("code", "prose")
    np.testing.assert_array_equal(found.labels_S, LABELS_S)
    assert Domains.of([None, None]).names == ()


def test_every_number_has_a_unit_and_a_value_or_a_reason(measured: MeasuredRouter) -> None:
    assert measured.record.metrics.keys() <= UNITS.keys()
    for name, metric in measured.record.metrics.items():
        assert metric.unit == UNITS[name]
        assert metric.value is not None or metric.reason, name
    assert measured.record.metrics["rollout_overlap"].reason == NO_PROMPT


def test_the_load_of_a_domain_is_the_share_of_its_tokens(
    measured: MeasuredRouter, tokens: RoutedTokens
) -> None:
    chosen = chosen_of(tokens)
    for number, name in enumerate(("code", "prose")):
        own = [c for c, s in zip(chosen, SEQUENCE_T, strict=True) if LABELS_S[s] == number and c]
        expected = [sum(e in c for c in own) / len(own) for e in range(EXPERTS)]
        assert measured.record.domain_load[name] == pytest.approx(expected, rel=1e-5)


def test_the_table_of_domains_is_of_pairs_of_sequences(
    measured: MeasuredRouter, tokens: RoutedTokens
) -> None:
    own, chance = LABELS_S[SEQUENCE_T], mean_overlap(tokens, lambda t, s: True)
    for (a, one), (b, other) in itertools.product(enumerate(("code", "prose")), repeat=2):
        mean = mean_overlap(
            tokens,
            lambda t, s, a=a, b=b: SEQUENCE_T[t] != SEQUENCE_T[s] and {own[t], own[s]} == {a, b},
        )
        assert measured.record.domain_overlap[one][other] == pytest.approx(
            above(mean, chance), rel=1e-4, abs=1e-6
        )
    (within, across), _ = measured.domains
    assert within.value == pytest.approx(measured.record.domain_overlap["code"]["code"], rel=1e-4)
    assert across.value == pytest.approx(measured.record.domain_overlap["code"]["prose"], rel=1e-4)


def test_coactivation_is_the_share_of_an_experts_tokens_that_another_gets(
    measured: MeasuredRouter, tokens: RoutedTokens
) -> None:
    chosen = chosen_of(tokens)
    for a, b in itertools.permutations(range(EXPERTS), 2):
        mine = [c for c in chosen if a in c]
        expected = sum(b in c for c in mine) / len(mine)
        assert measured.record.matrices["coactivation"][a][b] == pytest.approx(expected, rel=1e-5)


def test_one_expert_a_token_has_no_pairs_of_experts(tokens: RoutedTokens) -> None:
    usage = tokens.usage
    single = Usage(usage.selected_TK[:, :1], usage.sequence_T, usage.groups_S, EXPERTS)
    alone = replaced(tokens, usage=single, top_k=1)
    found = measure_router(alone, NO_PROMPT, {}, Domains.of([None] * 6), DRAWS, SETTINGS)
    assert found.record.matrices == {}
    assert (found.record.domain_load, found.domains) == ({}, ())


def test_correlations_are_over_all_pairs_where_there_are_few(tokens: RoutedTokens) -> None:
    found = {(r.pairs, r.hidden, r.usage): r for r in measure_pairs(tokens.items, DRAWS, SETTINGS)}
    items = tokens.items
    count = len(items.x_ND)
    for kind, same in (("within", True), ("across", False)):
        pairs = [
            (i, j) for i, j in itertools.combinations(range(count), 2)
            if (items.sequence_N[i] == items.sequence_N[j]) == same
        ]  # fmt: skip
        x = items.x_ND.astype(float)
        hidden = {
            "cosine": [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in pairs],
            "visible": [(tokens.weight_ED @ x[i]) @ (tokens.weight_ED @ x[j]) for i, j in pairs],
        }
        root = items.root_NE
        usage = {
            "chosen": [items.usage_NE[i] @ items.usage_NE[j] for i, j in pairs],
            "distribution": [
                1 - 2 * np.arccos(min(1.0, root[i] @ root[j])) / np.pi for i, j in pairs
            ],
        }
        for (name, one), (what, other) in itertools.product(hidden.items(), usage.items()):
            own = found[kind, name, what]
            assert own.pearson.value == pytest.approx(pearsonr(one, other).statistic, abs=1e-5)
            assert own.spearman.value == pytest.approx(
                spearmanr(np.round(one, 9), np.round(other, 9)).statistic, abs=2e-3
            )
            assert own.spearman.n == len(pairs)


def test_one_vector_added_to_all_router_rows_changes_nothing() -> None:
    plain, moved = trace_of(3), trace_of(3)
    vector = 0.8 * np.random.default_rng(0).normal(size=WIDTH).astype(np.float32)
    moved.router.weight_ED.data += torch.from_numpy(vector)
    assert moved.sample_x_MD is not None
    moved.logits_TE = moved.logits_TE + (moved.sample_x_MD @ vector)[:, None]
    one, other = (
        measure_router(found, NO_PROMPT, {}, Domains.of(DOMAINS), DRAWS, SETTINGS).record
        for trace in (plain, moved)
        if isinstance(found := gather(trace), RoutedTokens)
    )
    for name, metric in one.metrics.items():
        found = other.metrics[name]
        if metric.value is None:
            assert (found.value, found.reason) == (None, metric.reason), name
        else:
            assert found.value == pytest.approx(metric.value, rel=1e-4, abs=1e-5), name
    for a, b in zip(one.geometry, other.geometry, strict=True):
        assert b.spearman.value == pytest.approx(a.spearman.value, abs=1e-3)
