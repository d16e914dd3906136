"""Compares two models on the same tokens: common ancestor, and similarity of routing.

Legend: T tokens, E experts of the first model, F of the second, K chosen per token, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.commands.routing.expert_samples import (
    ExpertSample,
    find_expert_weights,
    sample_weights,
)
from moegeo_cli.commands.routing.figures import Figure, Figures
from moegeo_cli.commands.routing.record import RouterPair
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.geometry.mantel import PERMUTATIONS, mantel, sample_rows_evenly
from moegeo_cli.geometry.matching import Match, match_experts
from moegeo_cli.geometry.pair_means import PairMean, pairs_across_sequences, sum_by_group
from moegeo_cli.geometry.resample import Draws, Estimate, missing
from moegeo_cli.geometry.usage import Usage
from moegeo_cli.measuring.prepared import PreparedModel
from moegeo_cli.models.sources import ModelSource

OTHER_TOKENS = "the two routers see different tokens"
NO_ANCESTOR = "the two models have no common ancestor, so their expert numbers do not correspond"
OTHER_SHAPES = "the experts of the two models have different shapes"


@dataclass(frozen=True)
class Side:
    """The data of one router that a comparison with another model needs.

    Attributes:
        layer: index of the decoder layer.
        router: module path.
        usage: its choices.
        rows_SM: the compared tokens, M per sequence.
        root_NE: square roots of the routing distributions at these tokens; None for a hash router.
        experts: a sample of the experts' weights; or, as text, why there is none.
    """

    layer: int
    router: str
    usage: Usage
    rows_SM: np.ndarray
    root_NE: np.ndarray | None
    experts: ExpertSample | str


def copy_side(
    tokens: RoutedTokens, prepared: PreparedModel, source: ModelSource, seed: int
) -> Side:
    """Copy from a router what the comparison needs, so that its model can be freed.

    Args:
        tokens: the router's tokens.
        prepared: the model.
        source: holds streamed weights in memory while they are read.
        seed: random seed for the choice of tokens.
    """
    rows_SM = sample_rows_evenly(tokens.usage.sequence_T, seed)
    router = next(r for r in prepared.asked if r.path == tokens.router)
    weights = find_expert_weights(prepared.model, router)
    sample: ExpertSample | str = weights if isinstance(weights, str) else ""
    if not isinstance(weights, str):
        with source.holding(tokens.router):
            sample = sample_weights(weights)
    return Side(
        tokens.layer, tokens.router, tokens.usage, rows_SM, tokens.roots(rows_SM.ravel()), sample
    )


def pair_sides(one: Sequence[Side], other: Sequence[Side]) -> list[tuple[Side, Side]]:
    """Pair each router of one model with the router at the same relative depth of the other."""
    if not one or not other:
        return []
    last, others_last = max(len(one) - 1, 1), len(other) - 1
    return [(a, other[round(i * others_last / last)]) for i, a in enumerate(one)]


def decide_lineage(
    pairs: Sequence[tuple[Side, Side]],
) -> tuple[bool | None, str, list[Match | None]]:
    """Decide from the experts' weights whether two models have a common ancestor.

    Returns:
        True or False, or None if it could not be decided; the reason; and for each pair of routers
        how their experts match (None if their weights are not comparable).
    """
    matches: list[Match | None] = []
    reasons = []
    for a, b in pairs:
        match = None
        if isinstance(a.experts, str) or isinstance(b.experts, str):
            reasons.append(a.experts if isinstance(a.experts, str) else str(b.experts))
        elif a.experts.shapes != b.experts.shapes or (a.usage.experts != b.usage.experts):
            reasons.append(OTHER_SHAPES)
        else:
            match = match_experts(a.experts.weights_EW, b.experts.weights_EW)
            if match is None:
                reasons.append("the experts' weights are not finite")
        matches.append(match)
    known = [m for m in matches if m is not None]
    if not known:
        return None, "; ".join(sorted(set(reasons))) or "no router", matches
    related = sum(m.related for m in known)
    matched, others = (
        float(np.median([getattr(m, n) for m in known])) for n in ("matched", "others")
    )
    words = (
        f"experts' weights have cosine {matched:.3f} if matched one to one and {others:.3f} for "
        f"all other pairs (medians): clearly more in {related} of {len(known)} layers"
    )
    if related and any(m.renumbered for m in known if m.related):
        words += "; experts are numbered differently"
    return 2 * related > len(known), words, matches


def compare_pair(
    a: Side, b: Side, match: Match | None, lineage: bool | None, draws: Draws, seed: int
) -> RouterPair:
    """Measure how similarly two routers route the same tokens.

    Args:
        a: a router of the first model.
        b: its counterpart in the second model.
        match: how their experts match; None if not known.
        lineage: whether the models have a common ancestor; None if not known.
        draws: the bootstrap draws.
        seed: random seed of the permutations.
    """
    matched = bool(lineage) and match is not None and match.related
    figures = _similarities(a, b, draws, seed)
    figures["expert_match"] = Figure(
        missing("no weights were matched") if match is None else Estimate(match.matched),
        None if match is None else match.others,
    )
    figures["overlap_same_token"] = Figure(
        _same_tokens(a.usage, b.usage, match.partner_E, draws)
        if matched and match is not None
        else missing(NO_ANCESTOR if lineage is False else "experts could not be matched"),
        0.0,
    )
    return RouterPair(
        layer=a.layer,
        router=a.router,
        other_layer=b.layer,
        other_router=b.router,
        metrics={name: figure.metric(name) for name, figure in figures.items()},
        partner=tuple(int(e) for e in match.partner_E) if matched and match is not None else None,
    )


def _similarities(a: Side, b: Side, draws: Draws, seed: int) -> Figures:
    """Mantel's test: correlation of the two routers' similarities between tokens."""
    names = ("mantel", "mantel_spearman", "mantel_p_value")
    same = np.array_equal(a.rows_SM, b.rows_SM) and np.array_equal(
        a.usage.sequence_T, b.usage.sequence_T
    )
    if not same:
        return {name: Figure(missing(OTHER_TOKENS)) for name in names}
    if a.root_NE is None or b.root_NE is None:
        reason = "a hash router has no routing distribution"
        return {name: Figure(missing(reason)) for name in names}
    sequences = a.usage.sequence_T[a.rows_SM[:, 0]] if len(a.rows_SM) else np.zeros(0, dtype=int)
    groups_S = a.usage.groups_S[sequences]
    pearson, spearman, null, p_value = mantel(a.root_NE, b.root_NE, groups_S, draws, seed)
    tested = missing(pearson.reason or "") if p_value is None else Estimate(p_value, n=PERMUTATIONS)
    return {
        "mantel": Figure(pearson, null),
        "mantel_spearman": Figure(spearman),
        "mantel_p_value": Figure(tested),
    }


def _same_tokens(one: Usage, other: Usage, partner_E: np.ndarray, draws: Draws) -> Estimate:
    """Experts in common at the same token, above experts in common at tokens of two sequences."""
    if not np.array_equal(one.sequence_T, other.sequence_T):
        return missing(OTHER_TOKENS)
    renamed_F = np.arange(other.experts)  # experts without weights keep their numbers
    renamed_F[partner_E] = np.arange(len(partner_E))
    used = (one.chosen_T > 0) & (other.chosen_T > 0)
    one, other = one.part(used), other.part(used)
    chosen_TK = np.where(other.selected_TK >= 0, renamed_F[other.selected_TK], -1)
    other = Usage(chosen_TK, other.sequence_T, other.groups_S, other.experts)
    both_TKK = (one.selected_TK[:, :, None] == chosen_TK[:, None, :]) & (chosen_TK >= 0)[:, None, :]
    common_T = both_TKK.sum(axis=(1, 2)) / np.sqrt(one.chosen_T * other.chosen_T)
    group_T = one.groups_S[one.sequence_T]
    none_GG = np.zeros((draws.groups, draws.groups))
    same = PairMean(
        none_GG, np.bincount(group_T, common_T, draws.groups),
        none_GG, sum_by_group(np.ones(len(group_T)), group_T, draws.groups),
    )  # fmt: skip
    return same.above_chance(
        pairs_across_sequences(one.sums, other.sums, one.groups_S), draws, len(common_T)
    )
