r"""The dead-expert test: which experts are significantly unused, and the tokens that it needs.

An expert is dead if its share of the dispatch is significantly under 5% of the fair share. The null
hypothesis is T Bernoulli trials with chance 0.05·K/E. T is divided by the design effect, because
tokens of one sequence are not independent. Holm's correction over experts × routers, at 1%.

Legend: S sequences, T tokens, E experts, K experts chosen per token, L routers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.sums import RoutingSums
from moegeo_cli.records.metric import NO_POWER

DEAD_SHARE = 0.05  # of the fair share
LEVEL = 0.01
# Assumed before a probe was replayed. Trained routers showed 20 to 38 on passages of 264 bytes
# (`moegeo analyze` prints how many tokens the test would need).
USUAL_DESIGN_EFFECT = 40.0


@dataclass(frozen=True, slots=True)
class DeadTest:
    """The result of one router: the dead experts, or None with a reason.

    `needed` is the number of tokens that the test needs; None if the test was possible.
    """

    dead: tuple[int, ...] | None
    tokens: int
    design_effect: float
    needed: int | None = None
    reason: str | None = None


def find_dead(routers: Sequence[RoutingSums]) -> list[DeadTest]:
    """Test every expert of every router of one checkpoint together.

    Args:
        routers: all routers' sums over the same probe, or over one domain of it.

    Returns:
        One result per router. The test of a router has power if an expert with zero hits would be
        found dead after the correction over all experts.
    """
    family = sum(r.experts for r in routers if _reason(r) is None)
    outcomes: list[DeadTest | None] = []
    candidates: list[tuple[float, int, int]] = []
    for place, router in enumerate(routers):
        reason = _reason(router)
        if reason is not None:
            outcomes.append(DeadTest(None, router.tokens, 1.0, None, reason))
            continue
        effect = design_effect(router)
        trials = router.tokens / effect
        chance = DEAD_SHARE * router.top_k / router.experts
        if trials * math.log1p(-chance) > math.log(LEVEL / family):
            needed = math.ceil(effect * _trials(chance, family))
            outcomes.append(
                DeadTest(None, router.tokens, effect, needed,
                         f"{router.tokens:,} {NO_POWER} {needed:,} are needed")
            )  # fmt: skip
            continue
        p_E = _low_tail(router.dispatch_SE.sum(axis=0) / effect, trials, chance)
        candidates += [(float(p), place, e) for e, p in enumerate(p_E)]
        outcomes.append(None)
    found: dict[int, list[int]] = {}
    # Experts without power stay in the family: their p-values would be 1, last in Holm's order.
    for rank, (p, place, expert) in enumerate(sorted(candidates)):
        if p > LEVEL / (family - rank):
            break
        found.setdefault(place, []).append(expert)
    return [
        outcome
        or DeadTest(
            tuple(sorted(found.get(place, []))),
            routers[place].tokens,
            design_effect(routers[place]),
        )
        for place, outcome in enumerate(outcomes)
    ]


def design_effect(router: RoutingSums) -> float:
    """Variance of expert counts between sequences over their variance for independent tokens.

    Both variances are pooled over experts. Its square root is the factor by which dependence
    within sequences widens an interval.

    Returns:
        At least 1.

    Source: Kish (1965), *Survey Sampling*, for clusters of unequal size.
    """
    used_S = router.sequence_tokens > 0
    tokens_S = router.sequence_tokens[used_S].astype(np.float64)
    count = len(tokens_S)
    if count < 2:
        return 1.0
    hits_SE = router.dispatch_SE[used_S]
    rate_E = hits_SE.sum(axis=0) / tokens_S.sum()
    between_E = ((hits_SE - tokens_S[:, None] * rate_E) ** 2).sum(axis=0) * count / (count - 1)
    binomial_E = tokens_S.sum() * rate_E * (1.0 - rate_E)
    if binomial_E.sum() <= 0:
        return 1.0
    return max(1.0, float(between_E.sum() / binomial_E.sum()))


def tokens_for_power(experts: int, top_k: int, routers: int) -> int:
    """Number of probe tokens with which the test finds an expert that is never selected.

    Args:
        experts: E.
        top_k: K.
        routers: L.

    Returns:
        Tokens, with the design effect assumed as `USUAL_DESIGN_EFFECT`; 0 if every token uses
        every expert.
    """
    if top_k >= experts:
        return 0
    trials = _trials(DEAD_SHARE * top_k / experts, experts * max(routers, 1))
    return math.ceil(USUAL_DESIGN_EFFECT * trials)


def _trials(chance: float, family: int) -> float:
    """Number of trials with which zero hits reject at `LEVEL` over `family` tests."""
    return math.log(LEVEL / family) / math.log1p(-chance)


def _low_tail(hits_E: np.ndarray, trials: float, chance: float) -> np.ndarray:
    """P(X ≤ hits) of a binomial distribution, extended to fractional numbers of trials."""
    from scipy.special import betainc

    rest_E = np.maximum(trials - hits_E, 1e-12)
    return np.asarray(betainc(rest_E, hits_E + 1.0, 1.0 - chance))


def _reason(router: RoutingSums) -> str | None:
    """Why a router cannot be tested whatever the number of tokens; None if it can."""
    if not router.top_k:
        return "the number of experts per token varies"
    if router.top_k >= router.experts:
        return "every token uses every expert"
    if not router.dispatch_SE.sum():
        return "nothing was dispatched"
    return None
