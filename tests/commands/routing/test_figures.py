"""Numbers of one router by their definitions: loops over pairs of tokens, plain means."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from moegeo_cli.commands.routing.figures import (
    NO_DOMAINS,
    Figure,
    change_figures,
    direction_figures,
    domain_figures,
    mean_figures,
    overlap_figures,
    rollout_figures,
    row_space_figures,
    trend,
)
from moegeo_cli.commands.routing.tokens import NO_IDS, RoutedTokens
from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.geometry.resample import Estimate, group_sequences, make_draws, missing
from moegeo_cli.geometry.usage import Usage
from tests.commands.routing.recorded import (
    DRAWS,
    LABELS_S,
    SEQUENCE_T,
    above,
    chosen_of,
    mean_overlap,
    replaced,
    tokens_of,
)
from tests.traces import EXPERTS, LENGTHS, WIDTH, sequences_of


@pytest.fixture(scope="module")
def tokens() -> RoutedTokens:
    return tokens_of(1)


def value(figure: Figure) -> float:
    assert figure.estimate.value is not None, figure.estimate.reason
    return figure.estimate.value


def test_overlaps_are_those_of_loops_over_pairs_of_tokens(tokens: RoutedTokens) -> None:
    found = overlap_figures(tokens, DRAWS, 0)
    q, position, ids = SEQUENCE_T, tokens.position_T, tokens.token_T
    assert ids is not None
    chance = mean_overlap(tokens, lambda t, s: True)
    assert value(found["overlap_chance"]) == pytest.approx(chance)
    apart = mean_overlap(tokens, lambda t, s: q[t] != q[s])
    assert value(found["overlap_unrelated"]) == pytest.approx(apart)
    for name, keep in {
        "overlap_sequence": lambda t, s: q[t] == q[s],
        "overlap_position": lambda t, s: q[t] != q[s] and position[t] == position[s],
        "vocabulary_overlap": lambda t, s: q[t] != q[s] and ids[t] == ids[s],
    }.items():
        assert value(found[name]) == pytest.approx(above(mean_overlap(tokens, keep), chance)), name
        assert found[name].null == 0.0
    used = [len(c) for c in chosen_of(tokens) if c]
    uniform = np.mean(np.sqrt(used)) ** 2 / EXPERTS
    assert found["overlap_chance"].null == pytest.approx(uniform)


def test_a_probe_without_ids_has_no_vocabulary(tokens: RoutedTokens) -> None:
    found = overlap_figures(replaced(tokens, token_T=None), DRAWS, 0)
    assert found["vocabulary_overlap"].estimate.reason == NO_IDS
    assert found["vocabulary_specialization"].estimate.reason == NO_IDS


def test_sequence_affinity_is_the_likeness_of_two_sequences_loads(tokens: RoutedTokens) -> None:
    found = overlap_figures(tokens, DRAWS, 0)["sequence_affinity"]
    loads = np.zeros((len(LENGTHS), EXPERTS))
    for own, sequence in zip(chosen_of(tokens), SEQUENCE_T, strict=True):
        for expert in own:
            loads[sequence, expert] += 1
    loads /= loads.sum(1, keepdims=True)
    pairs = itertools.combinations(range(len(LENGTHS)), 2)
    expected = np.mean([np.sqrt(loads[a] * loads[b]).sum() for a, b in pairs])
    assert value(found) == pytest.approx(expected)
    assert found.estimate.n == len(LENGTHS)
    assert found.null is not None
    assert 0.0 < found.null <= 1.0


def test_what_inputs_share_is_their_mean(tokens: RoutedTokens) -> None:
    found = direction_figures(tokens, DRAWS)
    x = tokens.x_ND.astype(float)
    mean = x.mean(0)
    assert value(found["shared_energy"]) == pytest.approx(mean @ mean / (x**2).sum(1).mean())
    direction = mean / np.linalg.norm(mean)
    response = np.linalg.norm(tokens.weight_ED @ direction)
    random = np.linalg.norm(tokens.weight_ED) / np.sqrt(WIDTH)
    assert value(found["response"]) == pytest.approx(response)
    assert found["response"].null == pytest.approx(random)
    assert value(found["response_relative"]) == pytest.approx(response / random)
    assert found["response_relative"].null == 1.0
    logits = tokens.centred_logits
    assert logits is not None
    constant = (logits.mean(0) ** 2).sum() / (logits**2).sum(1).mean()
    assert value(found["constant_share"]) == pytest.approx(constant)


def test_the_row_space_holds_its_share_of_variance(tokens: RoutedTokens) -> None:
    found = row_space_figures(tokens, DRAWS)["row_space_share"]
    x = tokens.x_ND.astype(float)
    x = x - x.mean(0)
    basis = np.linalg.svd(tokens.weight_ED, full_matrices=False)[2][: EXPERTS - 1].T
    assert value(found) == pytest.approx(((x @ basis) ** 2).sum() / (x**2).sum())
    assert found.null == pytest.approx((EXPERTS - 1) / WIDTH)


def test_a_router_that_hashes_answers_to_no_direction(tokens: RoutedTokens) -> None:
    hashing = replaced(tokens, logits_TE=None)
    found = {**direction_figures(hashing, DRAWS), **row_space_figures(hashing, DRAWS)}
    for name in ("shared_energy", "response", "constant_share", "row_space_share"):
        assert found[name].estimate.reason == HASHED
    plain = direction_figures(tokens, DRAWS)["collapse"]
    assert value(found["collapse"]) == value(plain), "load needs no logits"


def test_domains_are_compared_over_pairs_of_sequences(tokens: RoutedTokens) -> None:
    found = domain_figures(tokens.usage, LABELS_S, DRAWS, 0)
    own = LABELS_S[SEQUENCE_T]
    chance = mean_overlap(tokens, lambda t, s: True)

    def other(t: int, s: int) -> bool:
        return bool(SEQUENCE_T[t] != SEQUENCE_T[s] and min(own[t], own[s]) >= 0)

    within = above(mean_overlap(tokens, lambda t, s: other(t, s) and own[t] == own[s]), chance)
    across = above(mean_overlap(tokens, lambda t, s: other(t, s) and own[t] != own[s]), chance)
    assert value(found["domain_overlap_within"]) == pytest.approx(within)
    assert value(found["domain_overlap_across"]) == pytest.approx(across)
    assert value(found["domain_gap"]) == pytest.approx(within - across)
    assert 0.0 < value(found["domain_p_value"]) <= 1.0
    alone = domain_figures(tokens.usage, np.where(LABELS_S == 0, 0, -1), DRAWS, 0)
    assert {f.estimate.reason for f in alone.values()} == {NO_DOMAINS}


def test_planted_domains_have_a_gap_of_one_and_the_least_p_value() -> None:
    tokens = tokens_of(1)
    labels = np.array([0, 1, 0, 1, 0, 1])
    first = np.where(labels[SEQUENCE_T] == 0, 0, 2)
    usage = tokens.usage.part(slice(None))
    usage.selected_TK[:] = np.stack([first, first + 1], axis=1)
    found = domain_figures(usage, labels, DRAWS, 0)
    within, across = (value(found[f"domain_overlap_{n}"]) for n in ("within", "across"))
    assert within == pytest.approx(1.0)
    assert across < 0.0, "less than chance"
    assert value(found["domain_gap"]) == pytest.approx(within - across)
    # 6 sequences have 20 labellings, 2 of them with this gap
    assert value(found["domain_p_value"]) == pytest.approx(0.1, abs=0.05)


def test_prompts_and_rests_are_compared_sequence_by_sequence(tokens: RoutedTokens) -> None:
    lengths = LENGTHS * 2  # it takes 8 sequences
    sequence_T, groups_S = sequences_of(lengths), group_sequences(len(lengths))
    selected_TK = np.concatenate([tokens.usage.selected_TK, tokens.usage.selected_TK[::-1]])
    own_usage = Usage(selected_TK, sequence_T, groups_S, EXPERTS)
    prompt_T = np.concatenate([np.arange(n) < n // 2 for n in lengths])
    draws, labels_S = make_draws(groups_S), np.tile(LABELS_S, 2)
    found = rollout_figures("rollout", own_usage, prompt_T, labels_S, draws, 0)
    chosen = [{int(e) for e in row if e >= 0} for row in selected_TK]

    def usage(sequence: int, first: bool) -> np.ndarray:
        total, count = np.zeros(EXPERTS), 0
        for t in np.flatnonzero((sequence_T == sequence) & (prompt_T == first)):
            if chosen[t]:
                total[list(chosen[t])] += 1 / np.sqrt(len(chosen[t]))
                count += 1
        return total / count

    sequences = range(len(lengths))
    firsts = [usage(s, True) for s in sequences]
    rests = [usage(s, False) for s in sequences]
    own = np.mean([firsts[s] @ rests[s] for s in sequences])
    chance = np.mean([firsts[s] @ rests[o] for s in sequences for o in sequences if s != o])
    assert value(found["rollout_overlap"]) == pytest.approx(above(own, chance))
    assert found["rollout_overlap"].null == found["rollout_same_domain"].estimate.value
    few = rollout_figures("rollout", tokens.usage, prompt_T[: len(SEQUENCE_T)], LABELS_S, DRAWS, 0)
    assert "fewer than 8 sequences" in str(few["rollout_overlap"].estimate.reason)
    reason = "samples that are not token ids have no continuation"
    none = rollout_figures("generated", tokens.usage, reason, LABELS_S, DRAWS, 0)
    assert {f.estimate.reason for f in none.values()} == {reason}
    assert set(none) == {f"generated_{n}" for n in
                         ("overlap", "same_domain", "correlation", "p_value")}  # fmt: skip


def drawn(number: float | None, seed: int = 0) -> Estimate:
    if number is None:
        return missing("not measured")
    return Estimate(number, number + np.random.default_rng(seed).normal(0, 0.1, 50), 7)


def test_means_over_routers_are_draw_by_draw_and_leave_out_p_values() -> None:
    routers = [
        {"response": Figure(drawn(1.0, 1), 0.5), "domain_p_value": Figure(drawn(0.1))},
        {"response": Figure(drawn(3.0, 2), 1.5), "domain_p_value": Figure(drawn(0.2))},
        {"response": Figure(drawn(None), 9.0), "domain_p_value": Figure(drawn(0.3))},
    ]
    found = mean_figures(routers)
    assert set(found) == {"response"}
    assert found["response"].value == 2.0
    assert found["response"].null_value == 1.0, "of the routers that have a value"
    assert found["response"].reason == "1 of 3 routers have no value"
    both = (drawn(1.0, 1).draws_B + drawn(3.0, 2).draws_B) / 2
    assert found["response"].ci_low == pytest.approx(np.quantile(both, 0.025))
    assert mean_figures([]) == {}


def test_a_trend_is_spearmans_correlation_and_needs_different_places() -> None:
    numbers, places = [0.3, 0.1, 0.5, 0.9, 0.2], [0.0, 1.0, 2.0, 3.0, 3.0]
    estimates = [drawn(n, place) for place, n in enumerate(numbers)]
    found = trend([*estimates, drawn(None)], [*places, 9.0], 3, "needs 3")
    assert found.value == pytest.approx(spearmanr(places, numbers).statistic)
    assert found.n == 5
    assert found.draws_B is not None
    for b in (0, 17, 49):
        own = [e.draws_B[b] for e in estimates]
        assert found.draws_B[b] == pytest.approx(spearmanr(places, own).statistic)
    few = trend(estimates[:2], [0.0, 1.0], 3, "needs 3 checkpoints")
    assert (few.value, few.reason, few.n) == (None, "needs 3 checkpoints", 2)
    same = trend(estimates, [1.0] * 5, 3, "needs 3 checkpoints")
    assert same.reason == "needs 3 checkpoints"
    flat = trend([drawn(1.0)] * 4, [0.0, 1.0, 2.0, 3.0], 3, "needs 3")
    assert flat.reason == "all values are the same"


def test_changes_are_last_less_first_of_what_both_have() -> None:
    first = {"response": Figure(drawn(1.0, 1)), "collapse": Figure(drawn(0.5, 2))}
    last = {"response": Figure(drawn(1.5, 1)), "saturation": Figure(drawn(0.9))}
    found = change_figures(first, last)
    assert set(found) == {"response"}
    assert found["response"].estimate.value == 0.5
    np.testing.assert_allclose(found["response"].estimate.draws_B, 0.5)
