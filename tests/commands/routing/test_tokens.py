"""What a replay leaves of a router's tokens: places, ids, rows, and why there is nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moegeo_cli.commands.routing.tokens import NO_IDS, RoutedTokens, kept_rows
from moegeo_cli.probes import Probe, Sample
from tests.commands.routing.recorded import (
    GROUPS_S,
    SEQUENCE_T,
    TOKENS,
    gather,
    tokens_of,
)
from tests.traces import EXPERTS, LENGTHS, WIDTH, probe_of, router_of, trace_of


def test_positions_count_from_each_sequence_and_ids_are_the_probes() -> None:
    found = tokens_of()
    assert found.position_T.tolist() == [p for n in LENGTHS for p in range(n)]
    ids = [int(i) for s in probe_of().sequences for i in s.input_ids]
    assert found.token_T is not None
    assert found.token_T.tolist() == ids
    np.testing.assert_array_equal(found.group_T, GROUPS_S[SEQUENCE_T])


def test_weights_and_logits_are_centred_where_a_constant_cannot_be_seen() -> None:
    soft, sigmoid = tokens_of(), tokens_of(scoring="sigmoid")
    np.testing.assert_allclose(soft.weight_ED.mean(0), 0.0, atol=1e-7)
    assert soft.basis_DR.shape == (WIDTH, EXPERTS - 1)
    assert sigmoid.basis_DR.shape == (WIDTH, EXPERTS)
    assert soft.centred_logits is not None
    assert sigmoid.centred_logits is not None
    logits = sigmoid.logits_TE
    assert logits is not None
    np.testing.assert_allclose(
        soft.centred_logits, logits - logits.mean(1, keepdims=True), atol=1e-6
    )
    np.testing.assert_allclose(sigmoid.centred_logits, logits)
    projector = soft.basis_DR @ soft.basis_DR.T
    np.testing.assert_allclose(soft.weight_ED @ projector, soft.weight_ED, atol=1e-9)


def test_roots_are_of_the_routing_distribution() -> None:
    found = tokens_of()
    assert found.logits_TE is not None
    rows = np.array([4, 0, 11])
    odds = np.exp(found.logits_TE[rows].astype(float))
    np.testing.assert_allclose(found.roots(rows) ** 2, odds / odds.sum(1, keepdims=True), rtol=1e-5)


def test_items_are_kept_tokens_that_chose_something() -> None:
    rows = np.arange(2, TOKENS, 3)
    trace = trace_of(1)
    assert trace.sample_x_MD is not None
    assert trace.selected_TK is not None
    trace.selected_TK[8] = -1
    whole = trace.sample_x_MD
    found = gather(dataclasses.replace(trace, sample_x_MD=whole[rows]), rows)
    assert isinstance(found, RoutedTokens)
    items, own = found.items, [r for r in rows if r != 8]
    np.testing.assert_array_equal(items.x_ND, whole[own])
    np.testing.assert_array_equal(items.sequence_N, SEQUENCE_T[own])
    for usage, row in zip(items.usage_NE, own, strict=True):
        expected = np.zeros(EXPERTS)
        expected[trace.selected_TK[row]] = 1 / np.sqrt(2)
        np.testing.assert_allclose(usage, expected)
    assert items.response_NE is not None
    np.testing.assert_allclose(items.response_NE, whole[own] @ found.weight_ED.T, atol=1e-5)


def test_one_side_has_its_own_positions_rows_and_ids() -> None:
    seen = np.flatnonzero(np.concatenate([np.arange(n) >= n // 2 for n in LENGTHS]))
    trace = dataclasses.replace(trace_of(2), rows=seen)
    found = gather(trace)
    assert isinstance(found, RoutedTokens)
    assert found.position_T.tolist() == [p for n in LENGTHS for p in range(n - n // 2)]
    np.testing.assert_array_equal(found.usage.sequence_T, SEQUENCE_T[seen])
    np.testing.assert_array_equal(found.x_ND, trace.sample_x_MD[seen])
    np.testing.assert_array_equal(found.kept_N, np.arange(len(seen)))
    ids = np.concatenate([s.input_ids for s in probe_of().sequences])
    np.testing.assert_array_equal(found.token_T, ids[seen])


def test_a_probe_of_something_else_has_no_ids() -> None:
    samples = [Sample({"x": np.zeros(n)}, n) for n in LENGTHS]
    found = gather(trace_of(1), probe=Probe.of(samples, "images"))
    assert isinstance(found, RoutedTokens)
    assert found.token_T is None
    assert NO_IDS == "the probe does not consist of token ids"


def test_numbers_beyond_the_experts_are_empty_slots() -> None:
    trace = trace_of(1)
    assert trace.selected_TK is not None
    trace.selected_TK[0] = (EXPERTS, 1)
    found = gather(trace)
    assert isinstance(found, RoutedTokens)
    assert found.usage.selected_TK[0].tolist() == [-1, 1]


def test_why_there_are_no_tokens() -> None:
    plain = trace_of(1)
    lost, weight = plain.logits_TE.copy(), np.full((EXPERTS, WIDTH), np.nan)
    lost[5, 2] = np.inf
    one = trace_of(1, experts=1)
    for trace, reason in (
        (dataclasses.replace(plain, problem="it was not observed"), "it was not observed"),
        (dataclasses.replace(plain, selected_TK=None), "the router was not called"),
        (dataclasses.replace(plain, router=router_of(weight)),
         "the router's weights or inputs are not finite"),
        (dataclasses.replace(plain, logits_TE=lost), "the router's logits are not finite"),
        (one, "a router with one expert has no choice"),
    ):  # fmt: skip
        assert gather(trace) == reason
    hashing = gather(dataclasses.replace(plain, logits_TE=lost), hash_layers=(0,))
    assert isinstance(hashing, RoutedTokens)
    assert (hashing.logits_TE, hashing.centred_logits, hashing.roots(np.arange(2))) == (None,) * 3


@pytest.mark.parametrize(("most", "count"), [(10**9, 50), (4 * 2 * WIDTH * 20, 20), (1, 16)])
def test_kept_rows_stay_within_the_bytes_and_are_the_same_each_time(most: int, count: int) -> None:
    routers = [router_of(np.zeros((EXPERTS, WIDTH)), layer) for layer in range(2)]
    rows = kept_rows(routers, 50, 0, most)
    assert len(rows) == count
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, kept_rows(routers, 50, 0, most))
