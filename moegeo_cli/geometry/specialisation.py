r"""How far experts specialise in domains and in token ids.

Domain specialisation is the mean, over domains, of the total variation distance between the
domain's load and the layer's load. Vocabulary specialisation is the largest share of a token id's
occurrences that one expert gets, averaged over the ids that occur often enough (an id that occurs
once always has share 1).

Tests permute labels among whole sequences, not among tokens, because neighbouring tokens resemble
each other.

Legend: T tokens, S sequences, E experts, G groups of sequences, V token ids, L labels.
Source: OLMoE (arXiv 2409.02060) for both; summaries, nulls and tests are ours.
"""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.pair_means import SequenceSums, sum_by_group
from moegeo_cli.geometry.resample import Draws, Estimate, draws_from_jackknife, missing
from moegeo_cli.geometry.usage import Usage

PERMUTATIONS = 999
LEAST_OCCURRENCES = 16
VOCABULARY_PERMUTATIONS = 4


def permute_labels(labels_S: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The labels permuted among the sequences that have one, shape (count, S)."""
    generator = np.random.default_rng(seed)
    known = np.flatnonzero(labels_S >= 0)
    dealt_PS = np.tile(labels_S, (count, 1))
    for row in dealt_PS:
        row[known] = labels_S[known[generator.permutation(len(known))]]
    return dealt_PS


def p_value(value: float, null_P: np.ndarray) -> float:
    """Share of permutations with at least this value; the observed value counts as one of them."""
    return float((1 + (null_P >= value - 1e-12).sum()) / (1 + len(null_P)))


def label_gap(sums: SequenceSums, labels_PS: np.ndarray) -> np.ndarray:
    """Mean overlap of tokens with the same label minus that of tokens with different labels.

    Args:
        sums: usage sums of each sequence's tokens.
        labels_PS: P labellings of the sequences, −1 for none.

    Returns:
        Shape (P,), in shares of experts in common, over pairs of tokens of different sequences.
    """
    known_S = labels_PS[0] >= 0
    sums_SE, tokens_S = sums.sums_SE[known_S], sums.counts_S[known_S]
    alone, alone_pairs = float((sums_SE**2).sum()), float((tokens_S**2).sum())
    every = float((sums_SE.sum(axis=0) ** 2).sum()) - alone
    every_pairs = float(tokens_S.sum() ** 2) - alone_pairs
    within_P, pairs_P = (np.full(len(labels_PS), -v) for v in (alone, alone_pairs))
    for label in np.unique(labels_PS[0][known_S]):
        own_PS = (labels_PS[:, known_S] == label).astype(np.float64)
        within_P += ((own_PS @ sums_SE) ** 2).sum(axis=1)
        pairs_P += (own_PS @ tokens_S) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        gap_P = within_P / pairs_P - (every - within_P) / (every_pairs - pairs_P)
    return np.asarray(gap_P)


def domain_overlap(
    usage: Usage, labels_S: np.ndarray, draws: Draws, seed: int
) -> tuple[Estimate, Estimate, Estimate, float | None, float | None]:
    """Overlap of tokens within domains and across domains, and a test of the difference.

    Overlaps are above the chance of the layer's load, over pairs of tokens of different sequences.

    Returns:
        The overlap within domains, the overlap across domains, their difference, the mean of the
        difference under permuted labels, and its p-value (None if it cannot be computed).
    """
    within, across = usage.labelled(labels_S)
    n = int(usage.sums.counts_S[labels_S >= 0].sum())
    found = [part.above_chance(usage.chance, draws, n) for part in (within, across)]
    if found[0].value is None or found[1].value is None:
        reason = found[0].reason or found[1].reason or ""
        return found[0], found[1], missing(reason, n), None, None
    draws_B = None
    if found[0].draws_B is not None and found[1].draws_B is not None:
        draws_B = found[0].draws_B - found[1].draws_B
    chance = usage.chance.value
    assert chance is not None
    null_P = label_gap(usage.sums, permute_labels(labels_S, PERMUTATIONS, seed)) / (1.0 - chance)
    value = found[0].value - found[1].value
    gap = Estimate(value, draws_B, n)
    return found[0], found[1], gap, float(null_P.mean()), p_value(value, null_P)


def domain_specialisation(
    usage: Usage, labels_S: np.ndarray, draws: Draws, seed: int
) -> tuple[Estimate, float | None]:
    """Mean over domains of the total variation distance between the domain's and the layer's load.

    Returns:
        The estimate, and its null: the mean over permutations of the labels among sequences.
    """
    known_S = labels_S >= 0
    dispatch_SE = usage.dispatch_SE * known_S[:, None]
    n = int(usage.sums.counts_S[known_S].sum())
    if not dispatch_SE.sum():
        return missing("nothing was dispatched", n), None
    labels = np.unique(labels_S[known_S])

    def distance(own_XE: np.ndarray, all_XE: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = [a / a.sum(axis=-1, keepdims=True) for a in (own_XE, all_XE)]
        return np.asarray(0.5 * np.abs(shares[0] - shares[1]).sum(axis=-1))

    all_E = dispatch_SE.sum(axis=0)
    all_BE = draws.sum_draws(sum_by_group(dispatch_SE, draws.groups_S, draws.groups))
    labels_PS = permute_labels(labels_S, PERMUTATIONS // 5, seed)
    value, value_B, null_P = 0.0, np.zeros(len(all_BE)), np.zeros(len(labels_PS))
    for label in labels:
        own_SE = dispatch_SE * (labels_S == label)[:, None]
        value += float(distance(own_SE.sum(axis=0), all_E)) / len(labels)
        own_GE = sum_by_group(own_SE, draws.groups_S, draws.groups)
        value_B += distance(draws.sum_draws(own_GE), all_BE) / len(labels)
        null_P += distance((labels_PS == label) @ dispatch_SE, all_E) / len(labels)
    return Estimate(value, value_B if len(value_B) else None, n), float(np.nanmean(null_P))


def vocabulary_specialisation(
    usage: Usage, token_T: np.ndarray, draws: Draws, seed: int
) -> tuple[Estimate, float | None]:
    """Mean over token ids of the largest share of their occurrences that one expert gets.

    Only ids with at least `LEAST_OCCURRENCES` occurrences count.

    Returns:
        The estimate, and its null: the mean with choices permuted among tokens, which keeps the
        counts of the ids and the load.
    """
    used = np.flatnonzero(usage.chosen_T > 0)
    _, inverse, counts_V = np.unique(token_T[used], return_inverse=True, return_counts=True)
    often = counts_V >= LEAST_OCCURRENCES
    if not often.any():
        return missing(f"no token id occurs {LEAST_OCCURRENCES} times", 0), None
    rows = often[inverse]
    used, inverse = used[rows], np.unique(inverse[rows], return_inverse=True)[1]
    kinds = int(often.sum())
    group_N = usage.groups_S[usage.sequence_T[used]]

    def totals(chosen: Usage, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return chosen.sum_by(ids, kinds, weighted=False), np.bincount(ids, minlength=kinds)

    def largest(hits_VE: np.ndarray, seen_V: np.ndarray) -> float:
        kept = seen_V > 0
        return float((hits_VE[kept].max(axis=1) / seen_V[kept]).mean())

    own = usage.part(used)
    hits_VE, seen_V = totals(own, inverse)
    value = largest(hits_VE, seen_V)
    without_G = np.full(draws.groups, np.nan)
    for group in range(draws.groups if len(draws.counts_BG) else 0):
        mine = group_N == group
        less_VE, less_V = totals(own.part(mine), inverse[mine])
        without_G[group] = largest(hits_VE - less_VE, seen_V - less_V)
    everyone = np.flatnonzero(usage.chosen_T > 0)
    generator = np.random.default_rng(seed)
    nulls = [
        largest(*totals(usage.part(generator.permutation(everyone)[: len(used)]), inverse))
        for _ in range(VOCABULARY_PERMUTATIONS)
    ]
    estimate = Estimate(value, draws_from_jackknife(value, without_G, draws), kinds)
    return estimate, float(np.mean(nulls))


def domain_table(usage: Usage, labels_S: np.ndarray, labels: int) -> np.ndarray:
    """Overlap above chance of tokens of each two domains, in different sequences, shape (L, L).

    NaN for two domains without a pair of tokens; all NaN if all tokens choose the same experts.
    """
    sums, chance = usage.sums, usage.chance.value
    own_LS = (labels_S == np.arange(labels)[:, None]).astype(np.float64)
    sums_LE, tokens_L = own_LS @ sums.sums_SE, own_LS @ sums.counts_S
    top_LL, pairs_LL = sums_LE @ sums_LE.T, np.outer(tokens_L, tokens_L)
    top_LL -= np.diag(own_LS @ (sums.sums_SE**2).sum(axis=1))
    pairs_LL -= np.diag(own_LS @ sums.counts_S**2)
    if chance is None or chance >= 1.0 - 1e-9:
        return np.full((labels, labels), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        found_LL = np.where(pairs_LL > 0, top_LL / pairs_LL, np.nan)
    return np.asarray((found_LL - chance) / (1.0 - chance))
