"""Which tokens reach an expert and how they weigh, against loops over tokens and slots."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moegeo_cli.commands.experts.tokens import SUBSPACE_TOKENS, LayerTokens
from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.geometry.resample import group_sequences, make_draws
from tests.commands.experts.recorded import (
    GROUPS_S,
    ROWS,
    block_of,
    gather,
    kept,
    plan_of,
    tokens_of,
)
from tests.traces import EXPERTS, LENGTHS, sequences_of, trace_of

TOKENS = sum(LENGTHS)


def loops(selected: np.ndarray, combine: np.ndarray, experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Dispatch and combine weights, token by token and slot by slot."""
    dispatch, weight = np.zeros((2, len(selected), experts))
    for token, (chosen, shares) in enumerate(zip(selected, combine, strict=True)):
        for expert, share in zip(chosen, shares, strict=True):
            if expert >= 0:
                dispatch[token, expert] = 1
                weight[token, expert] += share
    return dispatch, weight


def test_masses_weights_and_shares_are_those_of_loops() -> None:
    trace = kept(trace_of(1))
    assert trace.selected_TK is not None
    assert trace.weights_TK is not None
    trace.selected_TK[4, 1] = -1  # a slot beyond an expert's capacity
    found = gather(trace)
    assert isinstance(found, LayerTokens)
    dispatch, weight = loops(trace.selected_TK, trace.weights_TK, EXPERTS)
    np.testing.assert_array_equal(found.mass_NE, dispatch[ROWS])
    np.testing.assert_allclose(found.weight_NE, weight[ROWS], rtol=1e-12)
    np.testing.assert_array_equal(found.tokens_E, dispatch.sum(0))
    np.testing.assert_allclose(found.load_E, dispatch.sum(0) / dispatch.sum())
    np.testing.assert_allclose(found.mass_E, weight.sum(0) / weight.sum())
    np.testing.assert_array_equal(found.group_N, GROUPS_S[sequences_of()][ROWS])
    assert found.groups == len(LENGTHS)


def test_experts_without_work_take_their_share_of_load_with_them() -> None:
    trace = kept(trace_of(2))
    found = gather(trace, block_of(trace, EXPERTS - 1))
    assert isinstance(found, LayerTokens)
    dispatch, _ = loops(trace.selected_TK, trace.weights_TK, EXPERTS)
    assert found.mass_NE.shape == (len(ROWS), EXPERTS - 1)
    np.testing.assert_allclose(found.load_E, dispatch.sum(0)[:-1] / dispatch.sum())
    assert found.load_E.sum() < 1.0


def test_soft_weights_are_the_whole_distribution() -> None:
    trace = kept(trace_of(3))
    found = gather(trace, weights="soft")
    assert isinstance(found, LayerTokens)
    odds = np.exp(trace.logits_TE[ROWS].astype(float))
    np.testing.assert_allclose(found.mass_NE, odds / odds.sum(1, keepdims=True), rtol=1e-6)
    np.testing.assert_array_equal(found.weight_NE, found.mass_NE)


def test_a_block_that_divides_weights_by_their_sum_has_weights_that_add_up_to_one() -> None:
    trace = kept(trace_of(4))
    assert trace.weights_TK is not None
    plain = gather(trace)
    trace.weights_TK *= 0.25
    found = gather(trace, block_of(trace, renormalised=True))
    assert isinstance(found, LayerTokens)
    assert isinstance(plain, LayerTokens)
    np.testing.assert_allclose(found.weight_NE.sum(1), 1.0)
    np.testing.assert_allclose(found.weight_NE, plain.weight_NE, rtol=1e-6)


def test_a_router_that_scales_inputs_has_them_scaled_and_weighs_by_dispatch() -> None:
    trace = kept(trace_of(5))
    found = gather(trace, block_of(trace, form="stacked"), plan=plan_of("sigmoid"))
    assert isinstance(found, LayerTokens)
    np.testing.assert_array_equal(found.weight_NE, found.mass_NE)
    rows = np.array([1, 7, 3])
    score = 1.0 / (1.0 + np.exp(-trace.logits_TE[ROWS[rows], 2].astype(float)))
    assert trace.sample_x_MD is not None
    expected = trace.sample_x_MD[rows] * score[:, None]
    np.testing.assert_allclose(found.inputs(rows, 2).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_fisher_traces_are_sums_over_tokens_by_row() -> None:
    trace = kept(trace_of(6))
    found = gather(trace)
    assert isinstance(found, LayerTokens)
    total_ED, _, _ = trace.fishers["empirical", "position"].totals()
    np.testing.assert_allclose(found.fisher_trace_E, [row.sum() / TOKENS for row in total_ED])


def test_one_side_of_an_encoder_and_its_decoder_has_its_own_tokens() -> None:
    whole = trace_of(7)
    own = np.flatnonzero(np.arange(TOKENS) % 3 != 0)
    trace = dataclasses.replace(kept(whole), rows=own)
    found = gather(trace)
    assert isinstance(found, LayerTokens)
    rows = np.intersect1d(ROWS, own)
    assert whole.selected_TK is not None
    assert whole.weights_TK is not None
    dispatch, weight = loops(whole.selected_TK, whole.weights_TK, EXPERTS)
    np.testing.assert_array_equal(found.mass_NE, dispatch[rows])
    np.testing.assert_allclose(found.mass_E, weight[own].sum(0) / weight[own].sum())
    np.testing.assert_array_equal(found.x_ND.numpy(), whole.sample_x_MD[rows])
    np.testing.assert_array_equal(found.group_N, GROUPS_S[sequences_of()][rows])
    total_ED, _, _ = trace.fishers["empirical", "position"].totals()
    np.testing.assert_allclose(found.fisher_trace_E, total_ED.sum(1) / len(own))


def test_a_sequence_without_tokens_still_has_its_group() -> None:
    groups_S = group_sequences(len(LENGTHS) + 1)
    alone = int(np.flatnonzero(groups_S == groups_S.max())[0])
    lengths = np.insert(np.array(LENGTHS), alone, 0)
    trace = kept(trace_of(1))
    plan = dataclasses.replace(plan_of(), groups_S=groups_S)
    found = gather(trace, plan=plan, sequence_T=sequences_of(tuple(lengths)))
    assert isinstance(found, LayerTokens)
    assert found.groups == make_draws(groups_S).groups == len(LENGTHS) + 1


def test_what_cannot_be_had_is_said_in_words() -> None:
    def reason(weights: str = "topk", hashed: bool = False, **changes: object) -> LayerTokens | str:
        return gather(dataclasses.replace(kept(trace_of(8)), **changes), None, weights,
                      hashed=hashed)  # fmt: skip

    lost = trace_of(8).logits_TE
    lost[ROWS[2], 1] = np.nan
    assert reason(problem="its logits are not those of its weight").startswith("its logits")
    assert reason(selected_TK=None) == "the experts were not called"
    assert reason(sample_x_MD=np.full((len(ROWS), 6), np.inf, dtype=np.float32)) == (
        "the experts' inputs or weights are not finite"
    )
    assert reason(logits_TE=lost) == "the router's logits are not finite"
    assert reason("soft", hashed=True) == (
        "a hash router has no routing distribution to weight tokens by"
    )
    hashing = reason(hashed=True, logits_TE=lost)
    assert isinstance(hashing, LayerTokens), "a router that hashes needs no logits"
    assert hashing.fisher_trace_E == HASHED


def test_without_a_loss_there_is_no_fisher() -> None:
    found = gather(kept(trace_of(9)), has_loss=False)
    assert isinstance(found, LayerTokens)
    assert found.fisher_trace_E == "no token counts towards a loss"
    gone = gather(dataclasses.replace(kept(trace_of(9)), fishers={}))
    assert isinstance(gone, LayerTokens)
    assert gone.fisher_trace_E == "no token counts towards a loss"


@pytest.mark.parametrize("count", [30, SUBSPACE_TOKENS + 500])
def test_rows_of_an_expert_are_its_own_in_order_and_never_too_many(count: int) -> None:
    weight_NE = np.zeros((2 * count, EXPERTS))
    weight_NE[::2, 1] = 0.5
    tokens = tokens_of(weight_NE=weight_NE)
    rows = tokens.rows_of(1, seed=0)
    assert len(rows) == min(count, SUBSPACE_TOKENS)
    assert (np.diff(rows) > 0).all()
    assert set(rows) <= set(range(0, 2 * count, 2))
    np.testing.assert_array_equal(rows, tokens.rows_of(1, seed=0))
    assert len(tokens.rows_of(2, seed=0)) == 0
