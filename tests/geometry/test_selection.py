"""The selection rule against plain loops: groups, biases, margins, near-ties."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from moegeo_cli.geometry.selection import (
    SelectionRule,
    check_selection,
    expected_near_ties,
    round_to_bfloat16,
)


def sigmoid(v: float) -> float:
    return float(1 / (1 + np.exp(-v)))


def slow_select(rule: SelectionRule, z: np.ndarray) -> set[int]:
    """Top-k of one token, one expert at a time."""
    if rule.scoring == "softmax":
        scores = list(np.exp(z - z.max()) / np.exp(z - z.max()).sum())
    else:
        scores = [sigmoid(v) for v in z]
    if rule.bias_on == "logits":
        scores = [v + b for v, b in zip(z, rule.bias_E, strict=True)]
    elif rule.bias_E is not None:
        scores = [s + b for s, b in zip(scores, rule.bias_E, strict=True)]
    allowed = set(range(len(z)))
    if rule.groups is not None:
        count, kept = rule.groups
        width = len(z) // count
        members = [list(range(g * width, (g + 1) * width)) for g in range(count)]
        best = 1 if rule.group_score == "max" else 2
        ranks = [sum(sorted((scores[e] for e in m), reverse=True)[:best]) for m in members]
        chosen = sorted(range(count), key=lambda g: (-ranks[g], g))[:kept]
        allowed = {e for g in chosen for e in members[g]}
    return set(sorted(allowed, key=lambda e: (-scores[e], e))[: rule.top_k])


def reversed_ties(rule: SelectionRule, z: np.ndarray) -> set[int]:
    """The selection of the experts numbered from the end: another one where scores tie."""
    bias = None if rule.bias_E is None else rule.bias_E[::-1]
    mirrored = dataclasses.replace(rule, bias_E=bias)
    return {len(z) - 1 - e for e in slow_select(mirrored, z[::-1])}


RULES = [
    SelectionRule(2, "softmax"),
    SelectionRule(1, "sigmoid"),
    SelectionRule(2, "sigmoid", np.linspace(-0.2, 0.3, 8)),
    SelectionRule(3, "sigmoid", np.linspace(0.3, -0.2, 8), (4, 2)),
    SelectionRule(2, "softmax", None, (4, 2), "max"),
    SelectionRule(2, "sigmoid", np.repeat([0.3, 0.0, -0.1, 0.2], 2), bias_on="logits"),
]


@pytest.mark.parametrize("rule", RULES)
def test_selects_what_a_loop_selects(rule: SelectionRule) -> None:
    z = np.random.default_rng(3).normal(size=(200, 8)).astype(np.float32)
    mask = rule.select(rule.score(z))
    assert [set(np.flatnonzero(row)) for row in mask] == [slow_select(rule, row) for row in z]


@pytest.mark.parametrize("rule", RULES)
def test_near_ties_are_choices_that_bfloat16_changes(rule: SelectionRule) -> None:
    generator = np.random.default_rng(4)
    z = generator.normal(size=(400, 8)).astype(np.float32)
    z[:, 1] = z[:, 0] + generator.normal(size=400).astype(np.float32) * 1e-3
    selected = np.array([sorted(slow_select(rule, row)) for row in z])
    rounded = torch.tensor(z).bfloat16().float().numpy()
    expected = [
        slow_select(rule, a.astype(float)) != slow_select(rule, b.astype(float))
        or reversed_ties(rule, b.astype(float)) != slow_select(rule, b.astype(float))
        for a, b in zip(z, rounded, strict=True)
    ]
    check = check_selection(rule, z, selected)
    assert check.near_tie_N.tolist() == expected
    assert any(expected)
    assert not check.contradicted_N.any()


def test_margin_is_the_gap_between_last_selected_and_best_left_out() -> None:
    rule = SelectionRule(2, "softmax")
    z = np.array([[3.0, 1.0, 2.5, -1.0]], dtype=np.float32)
    check = check_selection(rule, z, np.array([[0, 2]]))
    assert check.margin_N[0] == pytest.approx(1.5)
    biased = SelectionRule(1, "sigmoid", np.array([0.0, 0.5, 0.0, 0.0]))
    check = check_selection(biased, z, np.array([[1]]))
    assert check.margin_N[0] == pytest.approx(sigmoid(1.0) + 0.5 - sigmoid(3.0))


def test_a_selection_that_the_rule_does_not_explain_is_contradicted() -> None:
    rule = SelectionRule(2, "softmax")
    z = np.array([[3.0, 1.0, 2.5, -1.0]] * 3, dtype=np.float32)
    check = check_selection(rule, z, np.array([[0, 2], [0, 1], [0, 0]]))
    assert check.contradicted_N.tolist() == [False, True, True]


def test_rounds_as_torch_does() -> None:
    values = np.random.default_rng(5).normal(size=10_000).astype(np.float32) * 100
    np.testing.assert_array_equal(
        round_to_bfloat16(values), torch.tensor(values).bfloat16().float().numpy()
    )


def test_ties_of_logits_that_are_bfloat16_already_are_seen() -> None:
    generator = np.random.default_rng(5)
    z = round_to_bfloat16(generator.normal(size=(300, 8)).astype(np.float32))
    z[:100, 0] = z[:100, 1] = 1.0
    z[:100, 2:] = np.minimum(z[:100, 2:], 0.5)
    rule = SelectionRule(1, "softmax")
    selected = np.array([sorted(slow_select(rule, row)) for row in z])
    check = check_selection(rule, z, selected)
    ties = [slow_select(rule, row) != reversed_ties(rule, row) for row in z]
    assert check.near_tie_N.tolist() == ties
    assert check.near_tie_N[:100].all()


def test_a_group_that_rounding_changes_is_a_near_tie_though_no_expert_is_left_over() -> None:
    rule = SelectionRule(2, "softmax", None, (4, 1), "max")
    z = np.array([[1.0, 0.0, 1.0001, 0.0, -1.0, -1.0, -2.0, -2.0]], dtype=np.float32)
    check = check_selection(rule, z, np.array([[2, 3]]))
    assert np.isinf(check.margin_N[0])
    assert check.near_tie_N[0]
    assert not check.contradicted_N[0]


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (32, 4), (64, 8), (128, 8), (256, 8)])
def test_near_ties_of_normal_logits_are_arithmetic(experts: int, top_k: int) -> None:
    """Over spreads of a whole binade: what one spread gives depends on where it lies in it."""
    generator = np.random.default_rng(experts)
    logits = generator.normal(size=(40_000, experts)) * 2.0 ** generator.random((40_000, 1))
    z = logits.astype(np.float32)
    chosen = np.argsort(-z, axis=1)[:, :top_k]
    check = check_selection(SelectionRule(top_k, "softmax"), z, chosen)
    expected = expected_near_ties(experts, top_k)
    assert check.near_tie_N.mean() == pytest.approx(expected, rel=0.15, abs=0.001)


def test_a_common_offset_makes_near_ties_and_centring_takes_it_off() -> None:
    z = np.random.default_rng(1).normal(size=(20_000, 64)).astype(np.float32)
    chosen = np.argsort(-z, axis=1)[:, :8]
    rule = SelectionRule(8, "softmax")
    plain, moved = (
        check_selection(rule, z, chosen),
        check_selection(rule, z + np.float32(8), chosen),
    )
    assert moved.near_tie_N.mean() > 3 * plain.near_tie_N.mean()
    assert plain.near_tie_centred_N is not None
    assert moved.near_tie_centred_N is not None
    same = moved.near_tie_centred_N == plain.near_tie_centred_N
    assert same.mean() > 0.999
    slow = [
        set(np.argsort(-round_to_bfloat16(row - row.mean()), kind="stable")[:8].tolist())
        != set(chosen[i].tolist())
        for i, row in enumerate(z[:500].astype(np.float64))
    ]
    assert (plain.near_tie_centred_N[:500] | ~np.array(slow)).all(), "a changed set is a near-tie"


def test_scores_have_no_centred_near_ties() -> None:
    z = np.random.default_rng(2).normal(size=(100, 8)).astype(np.float32)
    biased = SelectionRule(2, "sigmoid", np.zeros(8))
    chosen = np.argsort(-z, axis=1)[:, :2]
    assert check_selection(biased, z, chosen).near_tie_centred_N is None
