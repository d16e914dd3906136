r"""One router's routing metrics from its sums, each with the bootstrap draws of its interval.

A draw of a metric is the same formula applied to the sums of that draw. There are two exceptions.
Dispersion is measured from the mean of p over the whole probe, not over the draw. The null of an
imbalance shifts the drawn shares so that their mean is balanced, and keeps their spread.

Legend: S sequences, G groups, B draws, E experts, K experts chosen per token, L routers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.geometry.dead import DeadTest
from moegeo_cli.geometry.resample import (
    Draws,
    Estimate,
    geometric_mean_of,
    mean_of,
    missing,
    sum_of,
    worst_of,
)
from moegeo_cli.geometry.selection import expected_near_ties
from moegeo_cli.geometry.simplex import distance, distance_max, distance_reachable, entropy
from moegeo_cli.geometry.sums import CONTRADICTIONS, TOKEN_MEANS, RoutingSums
from moegeo_cli.records import NOT_FINITE

# A hash router has no logits: only its dispatch can be measured.
HASHED = "the router dispatches by token id (hash), so there is no choice to measure"
NEED_LOGITS = (
    "fsi", "dispersion", "entropy_token", "logit_z", "logit_max", "collapse_soft", "information",
    "margin", "near_ties", "near_ties_centred",
)  # fmt: skip
ROUTING_NAMES = (
    "fsi", "fsi_dispatch", "collapse", "collapse_soft", "dispersion", "information",
    "information_dispatch", "entropy_token", "entropy_load", "entropy_load_rescaled",
    "effective_experts", "dead_experts", "max_violation", "load_cv", "margin", "near_ties",
    "near_ties_centred", "logit_z", "logit_max",
)  # fmt: skip
TIES = ("margin", "near_ties", "near_ties_centred")
NOT_IN_LOGITS = "experts are chosen by scores, which a common offset of the logits changes"
VARYING = "the number of experts per token varies"
ALL_USED = "every token uses every expert"


def routing_estimates(
    sums: RoutingSums, draws: Draws, dead: DeadTest | None = None
) -> dict[str, Estimate]:
    """Every metric of one router that is computed from its logits and its dispatch.

    Args:
        sums: the router's sums by sequence.
        draws: the bootstrap draws, shared by all routers and checkpoints of the probe.
        dead: the router's result of the dead-expert test, which runs over all routers at once.

    Returns:
        Estimates by metric name; one without a value has a reason.
    """
    found = dict.fromkeys(ROUTING_NAMES, missing("no token was measured"))
    finite = sums.tokens - sums.nonfinite_tokens
    if sums.experts < 2:
        return dict.fromkeys(ROUTING_NAMES, missing("a router of one expert chooses nothing"))
    if finite <= 0:
        reason = "no token has finite logits" if sums.tokens else "no token was measured"
        return dict.fromkeys(ROUTING_NAMES, missing(reason))
    left_out = f"{sums.nonfinite_tokens:,} of {sums.tokens:,} tokens are not finite: left out"
    found |= _token_means(sums, draws)
    found |= _means_of_p(sums, draws, finite)
    found |= _loads(sums, draws, finite)
    if sums.hashed:
        found |= dict.fromkeys(NEED_LOGITS, missing(HASHED))
    else:
        found["logit_max"] = Estimate(
            float(sums.logit_max_S.max()),
            draws.maxima(sums.logit_max_S) if len(draws.counts_BG) else None,
            finite,
        )
    if dead is not None:
        value = None if dead.dead is None else float(len(dead.dead))
        found["dead_experts"] = Estimate(value, n=dead.tokens, reason=dead.reason)
    if sums.nonfinite_tokens:
        found = {
            name: Estimate(e.value, e.draws_B, e.n, e.null_B, e.reason or left_out)
            for name, e in found.items()
        }
    return {name: found[name] for name in ROUTING_NAMES}


def ratio_of_sums(values_S: np.ndarray, counts_S: np.ndarray, draws: Draws) -> Estimate:
    """A mean over tokens from sums by sequence, for example the loss per token.

    Args:
        values_S: sum over each sequence.
        counts_S: number of terms of each sum.
        draws: the bootstrap draws.

    Returns:
        The mean; missing with a reason if nothing was counted or the sum is not finite.
    """
    total = float(counts_S.sum())
    if not total:
        return missing("no token counts towards this", 0)
    value = float(values_S.sum()) / total
    if not math.isfinite(value):
        return missing(NOT_FINITE, int(total))
    tops_B = draws.sum_draws(draws.sum_by_group(values_S))
    counts_B = draws.sum_draws(draws.sum_by_group(counts_S.astype(float)))
    with np.errstate(divide="ignore", invalid="ignore"):
        draws_B = np.where(counts_B > 0, tops_B / counts_B, np.nan)
    return Estimate(value, draws_B if len(draws_B) else None, int(total))


def over_routers(
    by_router: Sequence[Mapping[str, Estimate]], routers: list[str], names: Sequence[str]
) -> dict[str, Estimate]:
    """Run-level values: the mean, sum or geometric mean over routers, and the worst router.

    Args:
        by_router: the estimates of each router.
        routers: the module paths of the routers, in the same order.
        names: which metrics.

    Returns:
        Estimates by metric name, and as `<name>_worst` for metrics with a worst direction.
    """
    combine: dict[str, Callable[[list[Estimate]], Estimate]] = {
        "mean": mean_of, "sum": sum_of, "geometric": geometric_mean_of,
    }  # fmt: skip
    found: dict[str, Estimate] = {}
    for name in names:
        estimates = [r[name] for r in by_router if name in r]
        if not estimates:
            continue
        spec = specs()[name]
        units = {e.unit for e in estimates}
        unit = units.pop() if len(units) == 1 else None
        found[name] = dataclasses.replace(combine[spec.over_routers](estimates), unit=unit)
        if spec.worst is not None:
            worst = worst_of(estimates, routers, largest=spec.worst == "max")
            found[f"{name}_worst"] = dataclasses.replace(worst, unit=unit)
    return found


def _token_means(sums: RoutingSums, draws: Draws) -> dict[str, Estimate]:
    found = {}
    tops_BM = draws.sum_draws(draws.sum_by_group(sums.values_SM))
    counts_BM = draws.sum_draws(draws.sum_by_group(sums.counts_SM.astype(float)))
    with np.errstate(divide="ignore", invalid="ignore"):
        means_BM = np.where(counts_BM > 0, tops_BM / counts_BM, np.nan)
    for column, name in enumerate(TOKEN_MEANS):
        count = int(sums.counts_SM[:, column].sum())
        if name == "entropy_dispatch":
            continue  # goes into information_dispatch
        if count:
            value = float(sums.values_SM[:, column].sum()) / count
            found[name] = Estimate(value, means_BM[:, column] if len(means_BM) else None, count)
        else:
            found[name] = missing("no token counts towards this", 0)
    if sums.contradicted < 0:
        reason = VARYING if not sums.top_k else ALL_USED
        found |= dict.fromkeys(TIES, missing(reason))
    elif sums.contradicted > CONTRADICTIONS * sums.tokens:
        share = sums.contradicted / sums.tokens
        reason = f"the selection rule does not explain {share:.1%} of the tokens"
        found |= dict.fromkeys(TIES, missing(reason))
    elif found["margin"].value is None:
        found["margin"] = missing("every eligible expert is selected")
    unit = "logits" if sums.margin_in_logits else "selection score"
    found["margin"] = dataclasses.replace(found["margin"], unit=unit)
    if not sums.margin_in_logits and found["near_ties"].value is not None:
        found["near_ties_centred"] = missing(NOT_IN_LOGITS)
    if sums.top_k and sums.top_k < sums.experts:
        # The null of the share of near-ties: its value for normal logits with this E and K.
        expected_B = np.array([expected_near_ties(sums.experts, sums.top_k)])
        for name in ("near_ties", "near_ties_centred"):
            if found[name].value is not None:
                found[name] = dataclasses.replace(found[name], null_B=expected_B)
    return found


def _means_of_p(sums: RoutingSums, draws: Draws, finite: int) -> dict[str, Estimate]:
    """Metrics that depend on the mean of p or on the mean of the combine weights."""
    found = {}
    for name, means_SE, part in (
        ("information", sums.probability_SE, "entropy_token"),
        ("information_dispatch", sums.combine_SE, "entropy_dispatch"),
    ):
        total_E = means_SE.sum(axis=0)
        if not total_E.sum():
            found[name] = missing("no combine weight is positive", 0)
            continue
        column = TOKEN_MEANS.index(part)
        mean_BE = _shares(draws.sum_draws(draws.sum_by_group(means_SE)))
        tops_B = draws.sum_draws(draws.sum_by_group(sums.values_SM[:, column]))
        counts_B = draws.sum_draws(draws.sum_by_group(sums.counts_SM[:, column].astype(float)))
        count = int(sums.counts_SM[:, column].sum())
        scale = math.log(sums.experts)
        value = float(entropy(total_E / total_E.sum())) / scale
        value -= float(sums.values_SM[:, column].sum()) / count
        with np.errstate(divide="ignore", invalid="ignore"):
            draws_B = entropy(mean_BE) / scale - tops_B / counts_B
        # If every token has the same distribution, this is zero up to rounding.
        found[name] = Estimate(
            max(value, 0.0), np.maximum(draws_B, 0.0) if len(draws_B) else None, count
        )
    mean_E = sums.mean_probability_E
    if mean_E is None:
        found["collapse_soft"] = missing("no token has a routing distribution", 0)
        return found
    found["collapse_soft"] = _imbalance(
        mean_E,
        _shares(draws.sum_draws(draws.sum_by_group(sums.probability_SE))),
        _distance_from_uniform(distance_max(sums.experts)),
        finite,
    )
    return found


def _loads(sums: RoutingSums, draws: Draws, finite: int) -> dict[str, Estimate]:
    """Metrics of the dispatch shares."""
    names = (
        "collapse", "entropy_load", "entropy_load_rescaled", "effective_experts",
        "max_violation", "load_cv",
    )  # fmt: skip
    load_E = sums.load_E
    if load_E is None:
        return dict.fromkeys(names, missing("nothing was dispatched", 0))
    experts, top_k = sums.experts, sums.top_k
    load_BE = _shares(draws.sum_draws(draws.sum_by_group(sums.dispatch_SE.astype(float))))

    def estimate(statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
        return _imbalance(load_E, load_BE, statistic, finite)

    found = {
        "entropy_load": estimate(lambda p: entropy(p) / math.log(experts)),
        "effective_experts": estimate(lambda p: np.exp(entropy(p))),
        "max_violation": estimate(lambda p: p.max(axis=-1) * experts - 1.0),
        "load_cv": estimate(lambda p: p.std(axis=-1) * experts),
    }
    if not top_k or top_k >= experts:
        reason = ALL_USED if top_k else VARYING
        return found | {n: missing(reason) for n in ("collapse", "entropy_load_rescaled")}
    least = math.log(top_k)
    found["collapse"] = estimate(_distance_from_uniform(distance_reachable(experts, top_k)))
    found["entropy_load_rescaled"] = estimate(
        lambda p: (entropy(p) - least) / (math.log(experts) - least)
    )
    return found


def _imbalance(
    shares_E: np.ndarray,
    shares_BE: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    count: int,
) -> Estimate:
    """A statistic of the shares, with its draws and its draws under balanced routing (the null)."""
    value = float(statistic(shares_E))
    if not len(shares_BE):
        return Estimate(value, n=count)
    balanced_BE = np.maximum(shares_BE - shares_E + 1.0 / len(shares_E), 0.0)
    return Estimate(value, statistic(shares_BE), count, statistic(_shares(balanced_BE)))


def _distance_from_uniform(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    def measure(shares: np.ndarray) -> np.ndarray:
        uniform_E = np.full(shares.shape[-1], 1.0 / shares.shape[-1])
        return np.asarray(distance(shares, uniform_E) / scale)

    return measure


def _shares(sums: np.ndarray) -> np.ndarray:
    """Rows scaled to sum to 1; NaN where a row is empty."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums / sums.sum(axis=-1, keepdims=True))
