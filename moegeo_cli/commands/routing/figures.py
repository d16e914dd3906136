"""Estimates of one router with their null values, and how they become metrics.

Legend: T tokens, N tokens with kept inputs, E experts, S sequences, B draws, L routers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from moegeo_cli.commands.experts.metrics import metric
from moegeo_cli.commands.routing.record import UNITS
from moegeo_cli.commands.routing.tokens import NO_IDS, RoutedTokens
from moegeo_cli.geometry.coactivation import excess_estimate
from moegeo_cli.geometry.estimates import HASHED, routing_estimates
from moegeo_cli.geometry.pair_means import SequenceSums, pairs_across_sequences
from moegeo_cli.geometry.resample import Draws, Estimate, difference, mean_of, missing
from moegeo_cli.geometry.rollout import Rollout, compare_parts
from moegeo_cli.geometry.routing import measure_routing
from moegeo_cli.geometry.shared_direction import MeanSums, SharedDirection
from moegeo_cli.geometry.specialisation import (
    PERMUTATIONS,
    domain_overlap,
    domain_specialisation,
    vocabulary_specialisation,
)
from moegeo_cli.geometry.sums import RouterTokens
from moegeo_cli.geometry.usage import Usage
from moegeo_cli.records import Metric

PRINCIPAL_ROWS = 1024  # tokens of the decomposition, whose cost is cubic in their number
PERMUTED = 4  # random permutations behind the null of the sequence affinity
NO_DOMAINS = "the probe names fewer than two domains"


@dataclass(frozen=True, slots=True)
class Figure:
    """An estimate with its null value (its value by chance); None if there is none."""

    estimate: Estimate
    null: float | None = None

    def metric(self, name: str) -> Metric:
        """The figure as a metric of a record."""
        return metric(self.estimate, UNITS[name], self.null)


Figures = dict[str, Figure]


def direction_figures(tokens: RoutedTokens, draws: Draws) -> Figures:
    """The shared direction of a router's inputs, the response to it, and the load imbalance."""
    logits_TE, names = tokens.centred_logits, ("shared_energy", "response", "response_relative")
    collapse = Figure(_collapse(tokens, draws))
    if logits_TE is None:
        none = Figure(missing(HASHED))
        return {**dict.fromkeys((*names, "constant_share"), none), "collapse": collapse}
    logits = MeanSums.of(logits_TE, tokens.group_T, draws.groups)
    shared = _shared(tokens, draws)
    return {
        "shared_energy": Figure(*shared.energy()),
        "response": Figure(shared.response(), shared.random_response),
        "response_relative": Figure(shared.relative_response(), 1.0),
        "constant_share": Figure(*logits.share_of_mean(draws)),
        "collapse": collapse,
    }


def row_space_figures(tokens: RoutedTokens, draws: Draws) -> Figures:
    """The share of inputs' variance that a router sees; its response to principal directions."""
    if tokens.logits_TE is None:
        return dict.fromkeys(("row_space_share", "response_principal"), Figure(missing(HASHED)))
    shared = _shared(tokens, draws)
    chance = tokens.basis_DR.shape[1] / tokens.basis_DR.shape[0]
    principal = shared.principal_response(PRINCIPAL_ROWS)
    return {
        "row_space_share": Figure(shared.row_space_share(), chance),
        "response_principal": Figure(principal, shared.random_response),
    }


def _shared(tokens: RoutedTokens, draws: Draws) -> SharedDirection:
    group_N = tokens.group_T[tokens.kept_N]
    return SharedDirection(tokens.x_ND, group_N, tokens.weight_ED, tokens.basis_DR, draws)


def _collapse(tokens: RoutedTokens, draws: Draws) -> Estimate:
    """Collapse as `moegeo analyze` computes it, without its null value."""
    usage = tokens.usage
    sums = measure_routing(
        RouterTokens(
            logits_TE=None,
            selected_TK=usage.selected_TK,
            weights_TK=np.ones(usage.selected_TK.shape, dtype=np.float32),
            sequence_T=usage.sequence_T,
            scoring=tokens.scoring,
            top_k=tokens.top_k,
            experts=tokens.experts,
            sequences=len(usage.groups_S),
        )
    )
    return replace(routing_estimates(sums, draws)["collapse"], null_B=None)


def overlap_figures(tokens: RoutedTokens, draws: Draws, seed: int) -> Figures:
    """Experts in common: of unrelated tokens, and of tokens of one sequence, position or id."""
    usage, chance = tokens.usage, tokens.usage.chance
    n = usage.tokens
    vocabulary = Figure(missing(NO_IDS)), Figure(missing(NO_IDS))
    if tokens.token_T is not None:
        vocabulary = (
            Figure(usage.same_class(tokens.token_T).above_chance(chance, draws, n), 0.0),
            Figure(*vocabulary_specialisation(usage, tokens.token_T, draws, seed)),
        )
    return {
        "overlap_chance": Figure(chance.estimate(draws, n), usage.uniform_chance),
        "overlap_unrelated": Figure(
            usage.across_sequences.estimate(draws, n), usage.uniform_chance
        ),
        "overlap_sequence": Figure(usage.within_sequences.above_chance(chance, draws, n), 0.0),
        "overlap_position": Figure(
            usage.same_class(tokens.position_T).above_chance(chance, draws, n), 0.0
        ),
        "sequence_affinity": _sequence_affinity(usage, draws, seed),
        "vocabulary_overlap": vocabulary[0],
        "vocabulary_specialization": vocabulary[1],
        "coactivation_excess": Figure(
            *excess_estimate(usage.selected_TK, tokens.group_T, tokens.experts, draws, seed)
        ),
    }


def _sequence_affinity(usage: Usage, draws: Draws, seed: int) -> Figure:
    """Mean similarity of two sequences' loads. Null: choices permuted among tokens."""

    def affinity(own: Usage) -> Estimate:
        counts_SE = own.dispatch_SE
        total_S = counts_SE.sum(axis=1)
        root_SE = np.sqrt(counts_SE / np.maximum(total_S, 1.0)[:, None])
        rows = SequenceSums(root_SE, (total_S > 0).astype(np.float64))
        return pairs_across_sequences(rows, rows, own.groups_S).estimate(
            draws, int((total_S > 0).sum())
        )

    generator = np.random.default_rng(seed)
    permuted = [
        affinity(
            Usage(
                usage.selected_TK[generator.permutation(len(usage.selected_TK))],
                usage.sequence_T, usage.groups_S, usage.experts,
            )
        ).value
        for _ in range(PERMUTED)
    ]  # fmt: skip
    known = [value for value in permuted if value is not None]
    return Figure(affinity(usage), float(np.mean(known)) if known else None)


def domain_figures(usage: Usage, labels_S: np.ndarray, draws: Draws, seed: int) -> Figures:
    """Experts in common of tokens of one domain, and specialisation by domain.

    Args:
        usage: the router's choices.
        labels_S: number of each sequence's domain, −1 for none.
        draws: the bootstrap draws.
        seed: random seed of the permutations.
    """
    names = ("domain_overlap_within", "domain_overlap_across", "domain_gap", "domain_p_value",
             "domain_specialization")  # fmt: skip
    if len(np.unique(labels_S[labels_S >= 0])) < 2:
        return {name: Figure(missing(NO_DOMAINS)) for name in names}
    within, across, gap, null, p_value = domain_overlap(usage, labels_S, draws, seed)
    return {
        "domain_overlap_within": Figure(within, 0.0),
        "domain_overlap_across": Figure(across, 0.0),
        "domain_gap": Figure(gap, null),
        "domain_p_value": Figure(_p_estimate(p_value, gap.reason)),
        "domain_specialization": Figure(*domain_specialisation(usage, labels_S, draws, seed)),
    }


def rollout_figures(
    prefix: str,
    usage: Usage,
    prompt_T: np.ndarray | str,
    labels_S: np.ndarray,
    draws: Draws,
    seed: int,
) -> Figures:
    """How well the experts of a prompt predict those of its continuation.

    Args:
        prefix: first part of the metrics' names: "rollout" or "generated".
        usage: the router's choices.
        prompt_T: true for tokens of a prompt; or, as text, why there are no prompts.
        labels_S: number of each sequence's domain, −1 for none.
        draws: the bootstrap draws.
        seed: random seed of the permutations.
    """
    if isinstance(prompt_T, str):
        none = missing(prompt_T)
        found = Rollout(none, none, none, None)
    else:
        parts = usage.part(prompt_T).means, usage.part(~prompt_T).means
        found = compare_parts(*parts, labels_S, draws, seed)
    return {
        f"{prefix}_overlap": Figure(found.own, found.same_domain.value or 0.0),
        f"{prefix}_same_domain": Figure(found.same_domain, 0.0),
        f"{prefix}_correlation": Figure(found.correlation, 0.0),
        f"{prefix}_p_value": Figure(_p_estimate(found.p_value, found.own.reason)),
    }


def _p_estimate(p_value: float | None, reason: str | None) -> Estimate:
    """A p-value as an estimate, whose `n` is the number of permutations."""
    if p_value is None:
        return missing(reason or "not tested")
    return Estimate(p_value, n=PERMUTATIONS)


def mean_figures(by_router: Sequence[Mapping[str, Figure]]) -> dict[str, Metric]:
    """Means over routers, draw by draw, with means of null values. P-values are left out."""
    found = {}
    for name in by_router[0] if by_router else ():
        if name.endswith("_p_value"):
            continue
        own = [figures[name] for figures in by_router]
        nulls = [f.null for f in own if f.null is not None and f.estimate.value is not None]
        null = float(np.mean(nulls)) if nulls else None
        found[name] = Figure(mean_of([f.estimate for f in own]), null).metric(name)
    return found


def trend(estimates: Sequence[Estimate], at: Sequence[float], least: int, reason: str) -> Estimate:
    """Spearman's correlation of values with their positions, ranked again in each draw.

    Args:
        estimates: the values; missing ones are left out.
        at: the position of each value.
        least: minimum number of values with different positions.
        reason: the reason if there are fewer.
    """
    known = [(e, x) for e, x in zip(estimates, at, strict=True) if e.value is not None]
    if len(known) < least or len({x for _, x in known}) < least:
        return missing(reason, len(known))
    rank_L = rankdata([x for _, x in known])

    def correlation(values_LB: np.ndarray) -> np.ndarray:
        ranks_LB = rankdata(values_LB, axis=0)
        a, b = rank_L - rank_L.mean(), ranks_LB - ranks_LB.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(a @ b / np.sqrt((a @ a) * (b**2).sum(axis=0)))

    value = float(correlation(np.array([[e.value] for e, _ in known], dtype=float))[0])
    if not np.isfinite(value):
        return missing("all values are the same", len(known))
    drawn = [e.draws_B for e, _ in known if e.draws_B is not None]
    draws_B = correlation(np.stack(drawn)) if len(drawn) == len(known) else None
    return Estimate(value, draws_B, len(known))


def change_figures(first: Mapping[str, Figure], last: Mapping[str, Figure]) -> Figures:
    """Last value minus first, paired draw by draw."""
    return {
        name: Figure(difference(last[name].estimate, first[name].estimate))
        for name in last
        if name in first
    }
