"""A router's trace as what is kept of it, against loops over tokens; and through files and back."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.arrays import CheckpointArrays, RouterArrays
from moegeo_cli.measuring.router_arrays import make_router_arrays
from moegeo_cli.replay.plan import RouterTrace
from moegeo_cli.replay.sampling import sample_rows, sample_size
from tests.traces import (
    EXPERTS,
    LENGTHS,
    TOP_K,
    WIDTH,
    architecture_of,
    arrays_of,
    replay_of,
    sequences_of,
    trace_of,
)

GROUPS_S, SEQUENCE_T = group_sequences(len(LENGTHS)), sequences_of()
TOKENS = sum(LENGTHS)
ALL = (np.arange(TOKENS), np.arange(TOKENS))  # rows of inputs, and of logits and choices


def form(trace: RouterTrace, rows: np.ndarray | None = None, **about: object) -> RouterArrays:
    found = make_router_arrays(
        replay_of([trace]), trace, architecture_of(**about), GROUPS_S, None,
        np.arange(TOKENS) if rows is None else rows, np.arange(TOKENS), 0,
    )  # fmt: skip
    assert found is not None
    return found


def test_sums_by_sequence_are_those_of_loops() -> None:
    trace = trace_of(1)
    found = form(trace)
    assert trace.selected_TK is not None
    dispatch, probability = np.zeros((2, len(LENGTHS), EXPERTS))
    for chosen, logits, sequence in zip(
        trace.selected_TK, trace.logits_TE, SEQUENCE_T, strict=True
    ):
        dispatch[sequence, chosen] += 1
        odds = np.exp(logits.astype(float))
        probability[sequence] += odds / odds.sum()
    np.testing.assert_array_equal(found.sums.dispatch_SE, dispatch)
    np.testing.assert_allclose(found.sums.probability_SE, probability, rtol=1e-6)
    np.testing.assert_array_equal(found.sums.sequence_tokens, LENGTHS)
    assert (found.layer, found.experts, found.top_k) == (0, EXPERTS, TOP_K)


def test_fishers_are_summed_by_group_with_the_tokens_behind_them() -> None:
    trace = trace_of(1)
    found = form(trace).fishers["empirical", "position"]
    total, groups, trace_GE = trace.fishers["empirical", "position"].totals()
    np.testing.assert_allclose(found.total_ED, total)
    np.testing.assert_allclose(found.trace_GE, trace_GE)
    assert found.tokens_G is not None
    for group in range(GROUPS_S.max() + 1):
        own = [n for n, g in zip(LENGTHS, GROUPS_S, strict=True) if g == group]
        assert found.tokens_G[group] == sum(own)
    mean = groups.mean(1)
    assert found.gram_EGG is not None
    for e in range(EXPERTS):
        gap = groups[:, e] - mean
        np.testing.assert_allclose(found.gram_EGG[e], gap @ gap.T, atol=1e-12)


def test_an_expert_that_no_token_reached_has_no_empirical_fisher() -> None:
    trace = trace_of(1)
    assert trace.selected_TK is not None
    trace.selected_TK[trace.selected_TK == 3] = -1
    found = form(trace).fishers
    assert found["empirical", "position"].has_fisher_E.tolist() == [True, True, True, False]
    assert found["categorical", "token"].has_fisher_E.all(), "its probability has a gradient"


def test_without_a_loss_token_the_empirical_fisher_is_not_measured() -> None:
    trace = trace_of(1)
    outcome = replay_of([trace])
    outcome.loss_tokens_S = np.zeros(len(LENGTHS), dtype=int)
    found = make_router_arrays(outcome, trace, architecture_of(), GROUPS_S, None, *ALL, 0)
    assert found is not None
    assert list(found.fishers) == [("categorical", "token")]


def test_a_second_moment_of_adam_stands_as_it_is() -> None:
    trace, adam = trace_of(1), np.arange(1.0, EXPERTS * WIDTH + 1).reshape(EXPERTS, WIDTH)
    found = make_router_arrays(
        replay_of([trace]), trace, architecture_of(), GROUPS_S, adam, *ALL, 0
    )
    assert found is not None
    np.testing.assert_array_equal(found.fishers["adam", "step"].total_ED, adam)


def test_one_side_keeps_its_own_rows_by_their_places() -> None:
    seen = np.flatnonzero(np.arange(TOKENS) % 2 == 0)
    inputs = np.arange(0, TOKENS, 3)
    whole = trace_of(2)
    assert whole.sample_x_MD is not None
    trace = dataclasses.replace(whole, rows=seen, sample_x_MD=whole.sample_x_MD[inputs])
    found = form(trace, inputs)
    np.testing.assert_array_equal(
        found.sums.sequence_tokens, [(SEQUENCE_T[seen] == s).sum() for s in range(len(LENGTHS))]
    )
    assert found.sample_rows is not None
    np.testing.assert_array_equal(seen[found.sample_rows], seen)
    np.testing.assert_array_equal(found.sample_logits_ME, whole.logits_TE[seen])
    assert found.input_rows is not None
    own = np.intersect1d(inputs, seen)
    np.testing.assert_array_equal(seen[found.input_rows], own)
    np.testing.assert_array_equal(found.sample_x_ND, whole.sample_x_MD[own])


@pytest.mark.parametrize("change", [{"problem": "lost"}, {"selected_TK": None}])
def test_what_was_not_observed_is_not_measured(change: dict[str, object]) -> None:
    trace = dataclasses.replace(trace_of(1), **change)
    assert make_router_arrays(
        replay_of([trace]), trace, architecture_of(), GROUPS_S, None, *ALL, 0
    ) is None  # fmt: skip


@pytest.mark.parametrize(
    ("routers", "experts", "slots", "tokens"),
    [
        (6, 16, 2, 4096),
        (24, 60, 4, 4096),
        (48, 128, 8, 2427),
        (58, 256, 8, 1063),
        (61, 384, 8, 1024),
    ],
)
def test_the_sample_of_tokens_stays_within_its_bytes(
    routers: int, experts: int, slots: int, tokens: int
) -> None:
    assert sample_size([(experts, slots)] * routers) == tokens


def test_a_hash_layer_keeps_its_load_and_nothing_of_logits() -> None:
    found = form(trace_of(1), hash_layers=(0,))
    assert found.sums.hashed
    assert found.fishers == {}
    assert found.sums.load_E is not None
    assert found.sums.mean_probability_E is None


def test_sampled_rows_are_fixed_sorted_and_all_where_there_are_few() -> None:
    np.testing.assert_array_equal(sample_rows(5, 9, 0), np.arange(5))
    rows = sample_rows(1000, 50, 3)
    assert (len(rows), len(set(rows)), rows.max() < 1000) == (50, 50, True)
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample_rows(1000, 50, 3))
    assert not np.array_equal(rows, sample_rows(1000, 50, 4))


def same(one: object, other: object, where: str = "") -> None:
    """Equal all through, arrays included."""
    if dataclasses.is_dataclass(one):
        for field in dataclasses.fields(one):
            same(getattr(one, field.name), getattr(other, field.name), f"{where}.{field.name}")
    elif isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other), where
        for key in one:
            same(one[key], other[key], f"{where}[{key}]")
    elif isinstance(one, tuple) and any(dataclasses.is_dataclass(x) for x in one):
        assert isinstance(other, tuple)
        for a, b in zip(one, other, strict=True):
            same(a, b, where)
    elif isinstance(one, np.ndarray):
        np.testing.assert_allclose(np.asarray(other), one, rtol=1e-6, atol=1e-9, err_msg=where)
    else:
        assert one == other, where


def test_named_arrays_and_facts_give_the_checkpoint_back() -> None:
    arrays = arrays_of(1)
    odd = dataclasses.replace(
        arrays.routers[0], experts_nonfinite=(1,), experts_zero=(), experts_identical=((0, 2),),
        selection_bias_E=np.arange(4.0), bias_E=np.ones(4), masked=(3,), bias_changes=0.25,
        sample_rows=np.arange(3), input_rows=np.arange(2), top_k=None,
    )  # fmt: skip
    arrays = dataclasses.replace(arrays, routers=(odd, arrays.routers[1]))
    back = CheckpointArrays.from_arrays(
        arrays.to_arrays(), arrays.describe(), routers_found=2, replay=arrays.replay
    )
    same(arrays, back)
    silent = dataclasses.replace(arrays, loss_S=None)
    assert CheckpointArrays.from_arrays(
        silent.to_arrays(), silent.describe(), routers_found=2
    ).loss_S is None  # fmt: skip


def test_masked_experts_that_no_token_reached_are_off() -> None:
    [router] = arrays_of(1, layers=(0,)).routers
    dispatch = router.sums.dispatch_SE.copy()
    dispatch[:, 2] = 0
    sums = dataclasses.replace(router.sums, dispatch_SE=dispatch)
    router = dataclasses.replace(router, sums=sums, masked=(1, 2))
    assert router.off == (2,), "expert 1 is masked and yet reached"
    assert router.selectable_sums.experts == EXPERTS - 1
    np.testing.assert_array_equal(router.selectable_sums.dispatch_SE, dispatch[:, [0, 1, 3]])
    own = router.selectable_fisher(("empirical", "position"))
    np.testing.assert_array_equal(
        own.total_ED, router.fishers["empirical", "position"].total_ED[[0, 1, 3]]
    )


def test_the_state_of_a_routers_weights() -> None:
    [router] = arrays_of(1, layers=(0,)).routers
    assert (router.state, router.zero_rows) == ("ok", ())
    weight = router.weight_ED.copy()
    weight[2] = 0.0
    assert dataclasses.replace(router, weight_ED=weight).zero_rows == (2,)
    assert dataclasses.replace(router, weight_ED=0 * weight).state == "zero"
    weight[0, 0] = np.inf
    assert dataclasses.replace(router, weight_ED=weight).state == "nonfinite"
