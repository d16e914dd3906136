r"""Which experts are chosen together by a token, compared with what their loads alone give.

:math:`N_{ab}` counts tokens that choose both a and b. The loads alone give the quasi-independent
table :math:`\tilde N_{ab} = \alpha_a \alpha_b` (a ≠ b) with the same row sums. The plain product
of the loads is no null, because an expert is never chosen together with itself.

Legend: T tokens, K experts chosen per token, E experts, G groups of sequences.
Source: OLMoE (arXiv 2409.02060) for co-activation (its code counts only experts of neighbouring
rank); Goodman (1968) for quasi-independence.
"""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, draws_from_jackknife, missing

SCALINGS, TOLERANCE = 500, 1e-12
NULL_DRAWS = 16


def pair_counts(selected_TK: np.ndarray, experts: int) -> np.ndarray:
    """Number of tokens that choose both of two experts: (E, E), symmetric, with a zero diagonal.

    Args:
        selected_TK: expert numbers, −1 for an empty slot.
        experts: E.
    """
    counts = np.zeros(experts * experts)
    for a in range(selected_TK.shape[1]):
        for b in range(a + 1, selected_TK.shape[1]):
            one_T, other_T = selected_TK[:, a].astype(np.int64), selected_TK[:, b]
            both_T = (one_T >= 0) & (other_T >= 0) & (one_T != other_T)
            cells = one_T[both_T] * experts + other_T[both_T]
            counts += np.bincount(cells, minlength=experts * experts)
    table_EE = counts.reshape(experts, experts)
    return np.asarray(table_EE + table_EE.T)


def expected_counts(counts_EE: np.ndarray) -> np.ndarray:
    """The quasi-independent table with the same row sums and a zero diagonal."""
    margin_E = counts_EE.sum(axis=1)
    factor_E = np.sqrt(margin_E / max(np.sqrt(margin_E.sum()), 1e-300))
    for _ in range(SCALINGS):
        reached_E = factor_E * (factor_E.sum() - factor_E)
        if (np.abs(reached_E - margin_E) <= TOLERANCE * margin_E.sum()).all():
            break
        with np.errstate(divide="ignore", invalid="ignore"):
            factor_E = np.where(reached_E > 0, factor_E * np.sqrt(margin_E / reached_E), 0.0)
    table_EE = np.outer(factor_E, factor_E)
    np.fill_diagonal(table_EE, 0.0)
    return np.asarray(table_EE)


def conditional(counts_EE: np.ndarray, tokens_E: np.ndarray) -> np.ndarray:
    """Share of each expert's tokens (rows) that also choose another expert (columns), (E, E).

    NaN on the diagonal and for an expert without a token.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share_EE = np.asarray(counts_EE / tokens_E[:, None])
    np.fill_diagonal(share_EE, np.nan)
    return share_EE


def excess(counts_EE: np.ndarray) -> float:
    """Total variation distance between the pair counts and the quasi-independent table.

    Returns:
        Between 0 and 1; NaN without a pair.
    """
    total = counts_EE.sum()
    if not total:
        return float("nan")
    return float(0.5 * np.abs(counts_EE - expected_counts(counts_EE)).sum() / total)


def excess_estimate(
    selected_TK: np.ndarray, group_T: np.ndarray, experts: int, draws: Draws, seed: int
) -> tuple[Estimate, float | None]:
    """The excess with its draws, and its null value.

    Args:
        selected_TK: expert numbers, −1 for an empty slot.
        group_T: each token's group of sequences.
        experts: E.
        draws: the bootstrap draws.
        seed: seed of the null draws.

    Returns:
        The excess, and its mean over as many independent pairs with the same loads (None without
        a pair).
    """
    counts_EE = pair_counts(selected_TK, experts)
    pairs = int(counts_EE.sum()) // 2
    if not pairs:
        return missing("no token chooses two experts", 0), None
    without_G = np.full(draws.groups, np.nan)
    for group in range(draws.groups if len(draws.counts_BG) else 0):
        own_EE = pair_counts(selected_TK[group_T == group], experts)
        without_G[group] = excess(counts_EE - own_EE)
    value = excess(counts_EE)
    rows, columns = np.triu_indices(experts, 1)
    expected_P = expected_counts(counts_EE)[rows, columns]
    generator = np.random.default_rng([seed, experts])
    nulls = []
    for drawn_P in generator.multinomial(pairs, expected_P / expected_P.sum(), NULL_DRAWS):
        table_EE = np.zeros((experts, experts))
        table_EE[rows, columns] = drawn_P
        nulls.append(excess(table_EE + table_EE.T))
    return Estimate(value, draws_from_jackknife(value, without_G, draws), pairs), float(
        np.mean(nulls)
    )
