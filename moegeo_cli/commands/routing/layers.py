"""Measures one router: its figures, pairs and matrices, and makes their record.

Legend: T tokens, S sequences, N tokens with kept inputs, P pairs, E experts, L domains, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.commands.experts.metrics import metric, round_row
from moegeo_cli.commands.routing.figures import (
    Figures,
    direction_figures,
    domain_figures,
    overlap_figures,
    rollout_figures,
    row_space_figures,
)
from moegeo_cli.commands.routing.record import (
    CORRELATION,
    GeometryRecord,
    Pairs,
    RoutingLayerRecord,
)
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.geometry.coactivation import conditional, expected_counts, pair_counts
from moegeo_cli.geometry.pair_correlation import (
    NULL_PERMUTATIONS,
    Items,
    PairSample,
    hidden_similarities,
    mean_absolute_correlations,
    permute_sequences,
    rank_alone,
    sample_pairs,
    usage_similarities,
)
from moegeo_cli.geometry.pair_means import pairs_across_sequences
from moegeo_cli.geometry.resample import Draws, Estimate
from moegeo_cli.geometry.specialisation import domain_table
from moegeo_cli.geometry.usage import Usage
from moegeo_cli.records.fields import Matrix

MIN_KEPT = 4  # tokens with kept inputs that the mean of a sequence needs


@dataclass(frozen=True)
class Domains:
    """The probe's domains: their names, and the number of each sequence's domain, −1 for none."""

    names: tuple[str, ...]
    labels_S: np.ndarray

    @classmethod
    def of(cls, domains: Sequence[str | None]) -> Domains:
        """The domains, given the domain of each sequence."""
        names = tuple(sorted({d for d in domains if d is not None}))
        places = {name: place for place, name in enumerate(names)}
        return cls(names, np.array([-1 if d is None else places[d] for d in domains]))


@dataclass(frozen=True)
class MeasuredRouter:
    """The record of a router, and its estimates for means over routers.

    Attributes:
        record: the router's record.
        figures: its estimates with their draws.
        domains: for each domain, overlap of its tokens with each other and with other domains.
    """

    record: RoutingLayerRecord
    figures: Figures
    domains: tuple[tuple[Estimate, Estimate], ...]


def measure_router(
    tokens: RoutedTokens,
    prompt_T: np.ndarray | str,
    generated: Figures,
    domains: Domains,
    draws: Draws,
    settings: RoutingSettings,
) -> MeasuredRouter:
    """Measure what the choices of one router depend on.

    Args:
        tokens: the router's tokens.
        prompt_T: true for the tokens of the first part of each sequence; or, as text, why there
            are none.
        generated: figures of prompts that the model continued.
        domains: the probe's domains.
        draws: the bootstrap draws, shared by all routers.
        settings: how to measure.
    """
    usage, labels_S, seed = tokens.usage, domains.labels_S, settings.seed
    figures = {
        **row_space_figures(tokens, draws),
        **direction_figures(tokens, draws),
        **overlap_figures(tokens, draws, seed),
        **domain_figures(usage, labels_S, draws, seed),
        **rollout_figures("rollout", usage, prompt_T, labels_S, draws, seed),
        **generated,
    }
    known = len(domains.names) > 1
    record = RoutingLayerRecord(
        layer=tokens.layer,
        router=tokens.router,
        experts=tokens.experts,
        top_k=tokens.top_k,
        scoring=tokens.scoring,
        metrics={name: figure.metric(name) for name, figure in figures.items()},
        geometry=tuple(measure_pairs(tokens.items, draws, settings)),
        domain_load=_domain_load(usage, domains) if known else {},
        domain_overlap=_domain_overlap(usage, domains) if known else {},
        matrices=_matrices(usage),
    )
    return MeasuredRouter(
        record, figures, _domain_estimates(usage, domains, draws) if known else ()
    )


def measure_pairs(items: Items, draws: Draws, settings: RoutingSettings) -> list[GeometryRecord]:
    """Correlate hidden similarity with usage similarity, for each kind of pairs.

    Args:
        items: tokens with kept inputs.
        draws: the bootstrap draws.
        settings: gives the number of pairs and the seed.

    Returns:
        One record per kind of pairs, hidden similarity and usage similarity. The null value is the
        mean absolute correlation after permuting whole sequences.
    """
    found = []
    kinds: tuple[tuple[Pairs, Items, bool], ...] = (
        ("within", items, True), ("across", items, False),
        ("sequences", items.by_sequence(MIN_KEPT), False),
    )  # fmt: skip
    for number, (pairs, own, within) in enumerate(kinds):
        generator = np.random.default_rng([settings.seed, number])
        pairs_P2 = sample_pairs(own.sequence_N, settings.pairs, generator, within=within)
        permutations = [
            permute_sequences(own.sequence_N, generator) for _ in range(NULL_PERMUTATIONS)
        ]
        sample = PairSample(own.group_N[pairs_P2], draws)
        hidden = {k: sample.rank(v) for k, v in hidden_similarities(own, pairs_P2).items()}
        usage = {k: sample.rank(v) for k, v in usage_similarities(own, pairs_P2).items()}
        permuted = [
            {k: rank_alone(v) for k, v in usage_similarities(own, order[pairs_P2]).items()}
            for order in permutations
        ]
        for name, one in hidden.items():
            for kind, other in usage.items():
                estimates = sample.correlate(one, other)
                nulls = mean_absolute_correlations(one, [d[kind] for d in permuted])
                spearman, pearson = (
                    metric(estimate, CORRELATION, None if estimate.value is None else null)
                    for estimate, null in zip(estimates, nulls, strict=True)
                )
                found.append(GeometryRecord(pairs, name, kind, spearman, pearson))
    return found


def _domain_load(usage: Usage, domains: Domains) -> dict[str, tuple[float | None, ...]]:
    """Share of each domain's tokens that each expert gets, by domain; each sums to K."""
    found = {}
    for number, name in enumerate(domains.names):
        own_S = domains.labels_S == number
        tokens = usage.sums.counts_S[own_S].sum()
        if tokens:
            found[name] = round_row(usage.dispatch_SE[own_S].sum(axis=0) / tokens)
    return found


def _domain_overlap(usage: Usage, domains: Domains) -> dict[str, dict[str, float | None]]:
    table_LL = domain_table(usage, domains.labels_S, len(domains.names))
    return {
        name: dict(zip(domains.names, round_row(row_L), strict=True))
        for name, row_L in zip(domains.names, table_LL, strict=True)
    }


def _domain_estimates(
    usage: Usage, domains: Domains, draws: Draws
) -> tuple[tuple[Estimate, Estimate], ...]:
    """Overlap of each domain's tokens with each other, and with tokens of other domains."""
    found = []
    for number in range(len(domains.names)):
        own_S = domains.labels_S == number
        others_S = (domains.labels_S >= 0) & ~own_S
        own, others = usage.sums.only(own_S), usage.sums.only(others_S)
        n = int(own.counts_S.sum())
        within, across = (
            pairs_across_sequences(own, other, usage.groups_S).above_chance(usage.chance, draws, n)
            for other in (own, others)
        )
        found.append((within, across))
    return tuple(found)


def _matrices(usage: Usage) -> dict[str, Matrix]:
    """Co-activation of all pairs, and its value by the loads alone; empty if K is 1."""
    counts_EE = pair_counts(usage.selected_TK, usage.experts)
    if not counts_EE.any():
        return {}
    tokens_E = usage.dispatch_SE.sum(axis=0)
    tables = {
        "coactivation": conditional(counts_EE, tokens_E),
        "coactivation_expected": conditional(expected_counts(counts_EE), tokens_E),
    }
    return {name: tuple(round_row(row) for row in table) for name, table in tables.items()}
