"""From a router's trace to its stored arrays: sums by sequence, Fisher sums, samples.

Legend: T real probe positions, S sequences, D router input width, E experts, G groups.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.geometry.fisher_sums import FisherSums, grams
from moegeo_cli.geometry.pair_means import sum_by_group
from moegeo_cli.geometry.rounding import changed_choices, coarseness
from moegeo_cli.geometry.routing import add_dispersion, measure_routing
from moegeo_cli.geometry.selection import SelectionRule
from moegeo_cli.geometry.sums import RouterTokens
from moegeo_cli.measuring.arrays import RouterArrays
from moegeo_cli.measuring.routing_statistic import (
    RoutingStatistic,
    copied,
    describe_router,
    masked_experts,
)
from moegeo_cli.models.damage import find_damage
from moegeo_cli.replay.plan import Replay, RouterTrace

# Number of sampled rows whose choice is tried with other biases.
ROUNDED_TOKENS = 1024


def make_router_arrays(
    outcome: Replay,
    trace: RouterTrace,
    architecture: Architecture,
    groups_S: np.ndarray,
    adam: np.ndarray | None,
    input_rows: np.ndarray,
    sample: np.ndarray,
    seed: int,
) -> RouterArrays | None:
    """Turn one router's trace into sums and samples.

    Args:
        outcome: the result of the replay.
        trace: the router's trace.
        architecture: the facts about the routers in the config.
        groups_S: each sequence's group for resampling.
        adam: Adam's second moments of the router, (E, D); None for other Fisher kinds.
        input_rows: the probe's rows whose router inputs were kept.
        sample: the probe's rows whose logits and choices are kept.
        seed: of the tokens that the selection bias is rounded for.

    Returns:
        None if the router could not be measured.
    """
    if trace.problem or trace.selected_TK is None or trace.weights_TK is None:
        return None
    router = trace.router
    facts = describe_router(router, architecture)
    weight_ED, hashes = (
        copied(router.weight_ED[: router.experts]), router.layer in architecture.hash_layers
    )  # fmt: skip
    kept = np.arange(len(outcome.sequence_T)) if trace.kept is None else trace.kept
    own = np.arange(len(kept)) if trace.rows is None else np.flatnonzero(np.isin(kept, trace.rows))
    masked = () if hashes else masked_experts(router)
    tokens = dataclasses.replace(
        facts,
        logits_TE=None if hashes else trace.logits_TE[own],
        selected_TK=trace.selected_TK[own],
        weights_TK=trace.weights_TK[own],
        sequence_T=outcome.sequence_T[kept[own]],
        sequences=len(groups_S),
    )
    off: tuple[int, ...] = ()
    if isinstance(trace.statistic, RoutingStatistic):
        sums = add_dispersion(
            trace.statistic.finish(), trace.logits_TE[own], tokens.weights_TK, tokens.sequence_T,
            tokens.scoring,
        )  # fmt: skip
    else:
        off = tuple(e for e in masked if not (tokens.selected_TK == e).any())
        sums = measure_routing(dataclasses.replace(tokens, masked=off))
    groups = int(groups_S.max()) + 1
    dispatched_GE = sum_by_group(sums.dispatch_SE, groups_S, groups)
    probability_GE = sum_by_group(sums.probability_SE, groups_S, groups)
    tokens_G = sum_by_group(sums.sequence_tokens[:, None], groups_S, groups)[:, 0]
    fishers = {}
    for (kind, unit), accumulator in trace.fishers.items() if not hashes else ():
        if kind == "empirical" and not outcome.loss_tokens_S.any():
            continue  # not measured, which is not the same as zero
        total_ED, groups_GEP, trace_GE = accumulator.totals()
        has = np.ones(router.experts, dtype=bool)
        has[list(off)] = False
        if kind == "empirical" and outcome.unselected == "zero":
            has &= dispatched_GE.sum(0) > 0
        gram_EGG, mean_gram_GG = grams(groups_GEP, has)
        fishers[kind, unit] = FisherSums(
            kind=kind,
            unit=unit,
            total_ED=total_ED,
            trace_GE=trace_GE,
            gram_EGG=gram_EGG,
            mean_gram_GG=mean_gram_GG,
            tokens_G=tokens_G,
            mass_GE=dispatched_GE if kind == "empirical" else probability_GE,
            dispatched_E=dispatched_GE.sum(0),
            has_fisher_E=has,
            projected=not accumulator.exact_groups,
        )
    if adam is not None and not hashes:
        fishers["adam", "step"] = FisherSums.without_groups("adam", "step", adam)
    damage = find_damage(router)
    rows = sample
    inputs_ND, places = trace.sample_x_MD, {}
    if trace.rows is not None:
        rows = np.intersect1d(rows, trace.rows)
        own_N = np.isin(input_rows, trace.rows)
        inputs_ND = None if inputs_ND is None else inputs_ND[own_N]
        places = {
            "sample_rows": np.searchsorted(trace.rows, rows),
            "input_rows": np.searchsorted(trace.rows, input_rows[own_N]),
        }
    at = np.searchsorted(kept, rows)
    return RouterArrays(
        layer=router.layer,
        path=router.path,
        experts=router.experts,
        top_k=facts.top_k,
        scoring=architecture.scoring or "",
        sums=sums,
        fishers=fishers,
        weight_ED=weight_ED,
        bias_E=None if router.bias_E is None else copied(router.bias_E),
        sample_logits_ME=trace.logits_TE[at],
        sample_selected_MK=trace.selected_TK[at],
        sample_x_ND=inputs_ND,
        **places,
        experts_nonfinite=None if damage is None else damage.nonfinite,
        experts_zero=None if damage is None else damage.zero,
        experts_identical=None if damage is None else damage.identical,
        selection_bias_E=facts.selection_bias_E,
        masked=masked,
        bias_changes=_bias_changes(tokens, trace.logits_TE[at], seed),
    )


def _bias_changes(tokens: RouterTokens, logits_ME: np.ndarray, seed: int) -> float | None:
    """Share of sampled tokens whose choice the rounding of the selection bias may change."""
    bias_E = tokens.selection_bias_E
    if bias_E is None or not tokens.top_k or tokens.logits_TE is None or not len(logits_ME):
        return None
    coarse = coarseness(bias_E)
    if coarse is None:
        return 0.0 if np.ptp(bias_E[np.isfinite(bias_E)]) else None
    rule = SelectionRule(
        tokens.top_k, tokens.scoring, np.asarray(bias_E, float), tokens.groups, tokens.group_score,
        tokens.bias_on,
    )  # fmt: skip
    some_ME = logits_ME[:: -(-len(logits_ME) // ROUNDED_TOKENS)]
    some_ME = some_ME[np.isfinite(some_ME).all(axis=1)]
    if not len(some_ME) or tokens.top_k >= len(bias_E):
        return None
    generator = np.random.default_rng([seed, len(bias_E)])
    return changed_choices(rule, rule.score(some_ME), coarse.step_E, generator)
