"""Two models on the same tokens: which routers and experts belong together, and what they share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moegeo_cli.commands.routing.expert_samples import ExpertSample
from moegeo_cli.commands.routing.models import (
    NO_ANCESTOR,
    OTHER_SHAPES,
    OTHER_TOKENS,
    Side,
    compare_pair,
    decide_lineage,
    pair_sides,
)
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.geometry.mantel import sample_rows_evenly
from moegeo_cli.geometry.matching import match_experts
from moegeo_cli.geometry.usage import Usage
from tests.commands.routing.recorded import DRAWS, above, chosen_of, common, tokens_of
from tests.commands.routing.recorded import SEQUENCE_T as Q
from tests.traces import EXPERTS

ORDER = np.array([2, 0, 3, 1])  # the other model's expert for each of this one's
WEIGHTS = np.random.default_rng(0).normal(size=(EXPERTS, 400)).astype(np.float32)


def sample(weights: np.ndarray, width: int = 20) -> ExpertSample:
    return ExpertSample(weights, ((width, 20),))


def side(tokens: RoutedTokens, experts: ExpertSample | str = "", **changes: Any) -> Side:
    rows = sample_rows_evenly(tokens.usage.sequence_T, 0)
    known: dict[str, Any] = {
        "layer": tokens.layer, "router": tokens.router, "usage": tokens.usage, "rows_SM": rows,
        "root_NE": tokens.roots(rows.ravel()), "experts": experts,
    }  # fmt: skip
    return Side(**known | changes)


def renumbered(tokens: RoutedTokens) -> Usage:
    """The same choices where expert e is called ORDER[e]."""
    usage = tokens.usage
    chosen = np.where(usage.selected_TK >= 0, ORDER[usage.selected_TK], -1)
    return Usage(chosen, usage.sequence_T, usage.groups_S, EXPERTS)


def test_routers_are_paired_by_their_share_of_the_depth() -> None:
    one = [side(tokens_of(1), layer=n) for n in range(5)]
    other = [side(tokens_of(1), layer=n) for n in range(3)]
    assert [(a.layer, b.layer) for a, b in pair_sides(one, other)] == [
        (0, 0), (1, 0), (2, 1), (3, 2), (4, 2),
    ]  # fmt: skip
    assert [b.layer for _, b in pair_sides(other, one)] == [0, 2, 4]
    assert [b.layer for _, b in pair_sides(one[:1], other)] == [0]
    assert pair_sides([], other) == []


def test_kin_are_told_by_the_weights_of_their_experts() -> None:
    noise = np.random.default_rng(1).normal(0, 0.3, WEIGHTS.shape)
    moved = np.empty_like(WEIGHTS)
    moved[ORDER] = WEIGHTS + noise
    a, b = side(tokens_of(1), sample(WEIGHTS)), side(tokens_of(1), sample(moved))
    lineage, words, [match] = decide_lineage([(a, b)])
    assert lineage is True
    assert match is not None
    np.testing.assert_array_equal(match.partner_E, ORDER)
    assert f"have cosine {match.matched:.3f} if matched one to one" in words
    assert f"and {match.others:.3f} for all other pairs" in words
    assert words.endswith("clearly more in 1 of 1 layers; experts are numbered differently")


def test_strangers_are_told_and_what_cannot_be_compared_has_its_reason() -> None:
    strange = np.random.default_rng(7).normal(size=WEIGHTS.shape).astype(np.float32)
    a, b = side(tokens_of(1), sample(WEIGHTS)), side(tokens_of(1), sample(strange))
    lineage, words, _ = decide_lineage([(a, b)])
    assert lineage is False
    assert words.endswith("clearly more in 0 of 1 layers")
    for experts, reason in (
        (sample(WEIGHTS, 10), OTHER_SHAPES),
        ("the experts were not found", "the experts were not found"),
        (sample(np.full_like(WEIGHTS, np.nan)), "the experts' weights are not finite"),
    ):
        told = decide_lineage([(a, side(tokens_of(1), experts))])
        assert told == (None, reason, [None])
    assert decide_lineage([]) == (None, "no router", [])


def test_half_of_the_layers_are_not_most() -> None:
    strange = np.random.default_rng(7).normal(size=WEIGHTS.shape).astype(np.float32)
    a = side(tokens_of(1), sample(WEIGHTS))
    twin, other = side(tokens_of(1), sample(WEIGHTS)), side(tokens_of(1), sample(strange))
    assert decide_lineage([(a, twin), (a, other)])[0] is False
    assert decide_lineage([(a, twin), (a, twin), (a, other)])[0] is True


def test_experts_in_common_are_counted_by_their_partners() -> None:
    one, two = tokens_of(1), tokens_of(2)
    two_sides = side(one), side(two, usage=renumbered(two))
    moved = np.empty_like(WEIGHTS)
    moved[ORDER] = WEIGHTS
    match = match_experts(WEIGHTS, moved)
    found = compare_pair(*two_sides, match, True, DRAWS, 0)
    ours, theirs = chosen_of(one), chosen_of(two)
    used = [t for t in range(len(ours)) if ours[t] and theirs[t]]
    same = np.mean([common(ours[t], theirs[t]) for t in used])
    apart = np.mean([common(ours[t], theirs[s]) for t in used for s in used if Q[t] != Q[s]])
    assert found.metrics["overlap_same_token"].value == pytest.approx(above(same, apart))
    assert found.partner == tuple(ORDER)
    assert found.metrics["expert_match"].value == pytest.approx(1.0)


def test_a_model_against_its_renumbered_self_shares_everything() -> None:
    one = tokens_of(1)
    moved = np.empty_like(WEIGHTS)
    moved[ORDER] = WEIGHTS
    pair = side(one), side(one, usage=renumbered(one))
    found = compare_pair(*pair, match_experts(WEIGHTS, moved), True, DRAWS, 0).metrics
    assert found["overlap_same_token"].value == pytest.approx(1.0)
    assert found["mantel"].value is None
    assert "sequences" in str(found["mantel"].reason), "six are too few for a permutation test"


def test_numbers_of_strangers_experts_mean_nothing() -> None:
    pair = side(tokens_of(1)), side(tokens_of(2))
    match = match_experts(WEIGHTS, WEIGHTS)
    strangers = compare_pair(*pair, match, False, DRAWS, 0)
    assert strangers.metrics["overlap_same_token"].reason == NO_ANCESTOR
    assert strangers.partner is None
    unread = compare_pair(*pair, None, None, DRAWS, 0)
    assert unread.metrics["overlap_same_token"].reason == "experts could not be matched"
    assert unread.metrics["expert_match"].reason == "no weights were matched"


def test_other_tokens_and_hashing_routers_have_no_similarities() -> None:
    a = side(tokens_of(1))
    shorter = dataclasses.replace(a, rows_SM=a.rows_SM[:, :1])
    found = compare_pair(a, shorter, None, None, DRAWS, 0).metrics
    for name in ("mantel", "mantel_spearman", "mantel_p_value"):
        assert found[name].reason == OTHER_TOKENS
    hashing = compare_pair(a, dataclasses.replace(a, root_NE=None), None, None, DRAWS, 0).metrics
    assert hashing["mantel"].reason == "a hash router has no routing distribution"
