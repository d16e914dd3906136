"""The dead-expert test against scipy's binomial, loops and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from moegeo_cli.geometry.dead import (
    DEAD_SHARE,
    LEVEL,
    USUAL_DESIGN_EFFECT,
    design_effect,
    find_dead,
    tokens_for_power,
)
from moegeo_cli.geometry.routing import measure_routing
from moegeo_cli.geometry.sums import RouterTokens, RoutingSums


def router(shares: list[float], tokens: int, sequences: int = 32, seed: int = 0) -> RoutingSums:
    """Top-1 of independent tokens with these shares."""
    generator = np.random.default_rng(seed)
    chosen = generator.choice(len(shares), tokens, p=shares)
    return of_choices(chosen[:, None], len(shares), sequences)


def of_choices(selected_TK: np.ndarray, experts: int, sequences: int) -> RoutingSums:
    count, top_k = selected_TK.shape
    return measure_routing(
        RouterTokens(
            logits_TE=np.zeros((count, experts), dtype=np.float32),
            selected_TK=selected_TK,
            weights_TK=np.full((count, top_k), 1 / top_k, dtype=np.float32),
            sequence_T=np.arange(count) * sequences // count,
            scoring="softmax",
            top_k=top_k,
        )
    )


def slow_dead(routers: list[RoutingSums]) -> list[tuple[int, ...]]:
    """Holm step by step with scipy's binomial; whole trials only."""
    rows = []
    for place, sums in enumerate(routers):
        chance = DEAD_SHARE * sums.top_k / sums.experts
        for expert, hits in enumerate(sums.dispatch_SE.sum(axis=0)):
            rows.append((binom.cdf(hits, sums.tokens, chance), place, expert))
    found: list[set[int]] = [set() for _ in routers]
    left = len(rows)
    for p, place, expert in sorted(rows):
        if p > LEVEL / left:
            break
        found[place].add(expert)
        left -= 1
    return [tuple(sorted(f)) for f in found]


def test_agrees_with_the_binomial_where_tokens_are_independent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("moegeo_cli.geometry.dead.design_effect", lambda _: 1.0)
    shares = [0.0, 0.0005, 0.003, 0.0965, 0.2, 0.3, 0.2, 0.2]
    routers = [router(shares, n, seed=n) for n in (4_000, 9_000)]
    outcomes = find_dead(routers)
    assert [o.dead for o in outcomes] == slow_dead(routers)
    assert all(o.dead and 0 in o.dead and 3 not in o.dead for o in outcomes)


def test_without_power_nothing_is_told_and_the_tokens_needed_are_named() -> None:
    shares = [0.0, *[1 / 7] * 7]
    (few,) = find_dead([router(shares, 600)])
    assert few.dead is None
    assert few.reason is not None
    assert "cannot tell" in few.reason
    assert few.needed is not None
    assert few.needed > 600
    (enough,) = find_dead([router(shares, 2 * few.needed)])
    assert enough.dead == (0,)


def test_zero_hits_reject_from_about_92_experts_over_k() -> None:
    # one router of E = 8, K = 1: ln(0.01 / 8) / ln(1 - 0.05 / 8) = 1066 trials, 133 E/K
    needed = np.log(LEVEL / 8) / np.log1p(-DEAD_SHARE / 8)
    assert tokens_for_power(8, 1, 1) / USUAL_DESIGN_EFFECT == pytest.approx(needed, abs=1)
    assert tokens_for_power(8, 8, 4) == 0


def test_an_expert_at_the_border_is_rarely_called_dead() -> None:
    """The family's level is 1%: at exactly 5% of the fair share, alarms stay that rare."""
    share = DEAD_SHARE / 8
    rest = (1 - share) / 7
    alarms = 0
    for seed in range(400):
        (outcome,) = find_dead([router([share, *[rest] * 7], 3_000, seed=seed)])
        alarms += bool(outcome.dead)
    assert alarms <= 10


def test_tokens_of_one_sequence_that_choose_alike_count_as_one() -> None:
    generator = np.random.default_rng(0)
    per_sequence = generator.integers(0, 8, 200)
    alike = of_choices(np.repeat(per_sequence, 50)[:, None], 8, 200)
    assert design_effect(alike) == pytest.approx(50, rel=0.05)
    independent = of_choices(generator.integers(0, 8, (10_000, 1)), 8, 200)
    assert design_effect(independent) == pytest.approx(1, abs=0.15)


def test_any_slot_counts() -> None:
    """An expert that is always second choice is in use."""
    generator = np.random.default_rng(1)
    selected = np.stack([generator.integers(0, 7, 8_000), np.full(8_000, 7)], axis=1)
    (outcome,) = find_dead([of_choices(selected, 8, 64)])
    assert outcome.dead == ()


def test_nothing_to_test_has_its_reason() -> None:
    (outcome,) = find_dead([of_choices(np.tile(np.arange(4), (100, 1)), 4, 8)])
    assert outcome.dead is None
    assert outcome.reason == "every token uses every expert"
