"""Routing metrics: what they must not depend on, sums by sequence, and gaps with reasons.

Their values are held against a slow reference on whole checkpoints in tests/end_to_end.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.geometry.estimates import routing_estimates
from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.geometry.routing import measure_routing
from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.geometry.sums import RouterTokens, RoutingSums
from moegeo_cli.measuring.metrics.router_cosine import mean_absolute_cosine


def route(
    logits: np.ndarray, scoring: str = "softmax", top_k: int = 2, lengths: tuple[int, ...] = ()
) -> RouterTokens:
    """Tokens of sequences of unequal length, routed by plain top-k and renormalised."""
    lengths = lengths or (len(logits) // 2, len(logits) - len(logits) // 2)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    p = probabilities(logits, scoring)
    weights = np.take_along_axis(p, order, axis=1)
    return RouterTokens(
        logits_TE=logits.astype(np.float32),
        selected_TK=order.astype(np.int32),
        weights_TK=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        sequence_T=np.repeat(np.arange(len(lengths)), lengths),
        scoring=scoring,
        top_k=top_k,
    )


def values(sums: RoutingSums) -> dict[str, float]:
    draws = make_draws(group_sequences(len(sums.sequence_tokens)))
    found = routing_estimates(sums, draws)
    assert {n for n, e in found.items() if e.value is None} == {"dead_experts"}, found
    return {name: e.value for name, e in found.items() if e.value is not None}


def logits_of(seed: int, tokens: int = 90, experts: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tokens, experts)) * 2


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["softmax", "sigmoid"]))
def test_the_experts_names_do_not_matter(seed: int, scoring: str) -> None:
    logits = logits_of(seed)
    order = np.random.default_rng(seed + 1).permutation(logits.shape[1])
    one, other = values(measure_routing(route(logits, scoring))), values(
        measure_routing(route(logits[:, order], scoring))
    )  # fmt: skip
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(-30, 30))
def test_a_constant_on_softmax_logits_moves_only_the_z_of_them(seed: int, constant: float) -> None:
    logits = logits_of(seed).astype(np.float32).astype(np.float64)
    one = values(measure_routing(route(logits)))
    other = values(measure_routing(route(logits + constant)))
    for name in set(one) - {"logit_z", "near_ties"}:
        assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name


def test_the_order_of_tokens_does_not_matter() -> None:
    tokens = route(logits_of(1), lengths=(10, 50, 30))
    order = np.random.default_rng(0).permutation(90)
    shuffled = dataclasses.replace(
        tokens,
        logits_TE=tokens.logits_TE[order],  # type: ignore[index]
        selected_TK=tokens.selected_TK[order],
        weights_TK=tokens.weights_TK[order],
        sequence_T=tokens.sequence_T[order],
    )
    one, other = values(measure_routing(tokens)), values(measure_routing(shuffled))
    assert other == pytest.approx(one, rel=1e-12)


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = route(logits_of(2, tokens=700), lengths=(100, 350, 250))
    whole = values(measure_routing(tokens))
    monkeypatch.setattr("moegeo_cli.geometry.routing.PIECE", 64 * 6)
    assert values(measure_routing(tokens)) == pytest.approx(whole, rel=1e-12)


def test_a_subset_is_what_measuring_it_alone_gives() -> None:
    """Of everything but dispersion, whose centre is the whole probe's."""
    tokens = route(logits_of(3), lengths=(20, 40, 30))
    part = measure_routing(tokens).subset(np.array([False, True, True]))
    rows = tokens.sequence_T > 0
    alone = dataclasses.replace(
        tokens,
        logits_TE=tokens.logits_TE[rows],  # type: ignore[index]
        selected_TK=tokens.selected_TK[rows],
        weights_TK=tokens.weights_TK[rows],
        sequence_T=tokens.sequence_T[rows] - 1,
    )
    expected = values(measure_routing(alone))
    found = values(part)
    for name in set(expected) - {"dispersion"}:
        assert found[name] == pytest.approx(expected[name], rel=1e-9), name


def test_sums_survive_storage() -> None:
    sums = measure_routing(route(logits_of(4)))
    back = RoutingSums.from_arrays(sums.to_arrays())
    assert values(back) == values(sums)


def test_tokens_that_are_not_finite_are_counted_and_left_out() -> None:
    logits = logits_of(5)
    logits[7] = np.nan
    sums = measure_routing(route(logits))
    found = routing_estimates(sums, make_draws(group_sequences(2)))
    assert sums.nonfinite_tokens == 1
    assert "1 of 90 tokens" in str(found["fsi"].reason)
    rest = np.delete(logits, 7, axis=0)
    alone = values(measure_routing(route(rest, lengths=(44, 45))))
    assert found["fsi"].value == pytest.approx(alone["fsi"], rel=1e-12)


def test_a_router_that_is_nowhere_finite_has_no_value_and_says_so() -> None:
    found = routing_estimates(
        measure_routing(route(np.full((20, 4), np.nan))), make_draws(group_sequences(2))
    )
    assert all(e.value is None and e.reason for e in found.values())


def test_a_rule_that_is_not_understood_gives_no_margin() -> None:
    tokens = route(logits_of(6))
    wrong = tokens.selected_TK.copy()
    wrong[:, 1] = (wrong[:, 0] + 1) % 6
    found = routing_estimates(
        measure_routing(dataclasses.replace(tokens, selected_TK=wrong)),
        make_draws(group_sequences(2)),
    )
    assert found["margin"].value is None
    assert "the selection rule does not explain" in str(found["margin"].reason)
    assert found["fsi"].value is not None


def test_every_expert_used_by_every_token_leaves_no_collapse_to_measure() -> None:
    found = routing_estimates(
        measure_routing(route(logits_of(7, experts=3), top_k=3)), make_draws(group_sequences(2))
    )
    assert found["collapse"].value is None
    assert "every expert" in str(found["collapse"].reason)


def test_the_null_of_collapse_is_above_zero_and_below_a_real_imbalance() -> None:
    """Sixty sequences with an expert of their own each: balance in the mean, none within."""
    generator = np.random.default_rng(8)
    favourite = np.repeat(np.arange(60) % 6, 10)
    logits = generator.normal(size=(600, 6))
    logits[np.arange(600), favourite] += 3
    sums = measure_routing(route(logits, lengths=(10,) * 60))
    found = routing_estimates(sums, make_draws(group_sequences(60)))["collapse"].metric("collapse")
    assert found.null_value is not None
    assert found.null_value > 0
    assert found.value is not None
    assert found.value < 3 * found.null_value


def test_row_cosine_against_a_loop() -> None:
    rows = np.random.default_rng(9).normal(size=(5, 7))
    pairs = [(a, b) for a in range(5) for b in range(a)]
    expected = np.mean(
        [
            abs(rows[a] @ rows[b]) / np.linalg.norm(rows[a]) / np.linalg.norm(rows[b])
            for a, b in pairs
        ]
    )
    assert mean_absolute_cosine(rows).value == pytest.approx(float(expected))
    assert mean_absolute_cosine(np.zeros((3, 4))).value is None
