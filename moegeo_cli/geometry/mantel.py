r"""Mantel's test: compares the routing of two models on the same tokens without matching experts.

Each model gives a table of similarities between tokens t and s, Σ √(p_te p_se) of their routing
distributions (the cosine of half their Fisher-Rao distance). Renumbering the experts does not
change the table, so two models with different experts can be compared. The statistic is the
correlation of the entries of the two tables. Its null permutes whole sequences of one model: tokens
of one sequence resemble each other, so permuting tokens would make everything significant. Pairs
within a sequence are left out for the same reason.

Legend: N tokens, M of each sequence, S sequences, P pairs, E experts of one model, F of the other.
Source: Mantel (1967); by sequence, ours.
"""

from __future__ import annotations

import numpy as np

from moegeo_cli.geometry.pair_correlation import PairSample
from moegeo_cli.geometry.resample import Draws, Estimate, missing
from moegeo_cli.geometry.specialisation import p_value

MOST_TOKENS, MOST_EACH, LEAST_SEQUENCES = 512, 8, 8
PERMUTATIONS = 499


def sample_rows_evenly(sequence_T: np.ndarray, seed: int) -> np.ndarray:
    """Choose the same number of evenly spaced tokens from each sequence.

    With equal numbers, whole sequences can be permuted.

    Args:
        sequence_T: each token's sequence; the tokens of a sequence are adjacent.
        seed: seed of the choice of sequences, if there are too many.

    Returns:
        Row numbers by sequence, shape (S, M); sequences that are too short are left out.
    """
    _, start, size = np.unique(sequence_T, return_index=True, return_counts=True)
    each = max(1, min(MOST_EACH, MOST_TOKENS // max(len(start), 1)))
    kept = np.flatnonzero(size >= each)
    if len(kept) > MOST_TOKENS // each:
        generator = np.random.default_rng(seed)
        kept = np.sort(generator.choice(kept, MOST_TOKENS // each, replace=False))
    steps = (np.arange(each) + 0.5) / each
    return np.asarray(start[kept][:, None] + np.floor(steps * size[kept][:, None]).astype(np.int64))


def mantel(
    one_NE: np.ndarray, other_NF: np.ndarray, groups_S: np.ndarray, draws: Draws, seed: int
) -> tuple[Estimate, Estimate, float | None, float | None]:
    """Correlations of two tables of similarities, with the permutation test of Pearson's.

    Args:
        one_NE: square roots of one model's routing distributions, M adjacent rows per sequence.
        other_NF: square roots of the other model's routing distributions, of the same tokens.
        groups_S: the group of each of these sequences.
        draws: the bootstrap draws.
        seed: seed of the permutations.

    Returns:
        Pearson's and Spearman's correlation over pairs of tokens of different sequences; then the
        mean of Pearson's under permutation of sequences, and its p-value. The last two are None if
        there are too few sequences or a table is constant.
    """
    sequences, count = len(groups_S), len(one_NE)
    if sequences < LEAST_SEQUENCES:
        reason = f"{sequences} sequences, fewer than {LEAST_SEQUENCES}"
        return missing(reason, 0), missing(reason, 0), None, None
    each = count // sequences
    of_N = np.repeat(np.arange(sequences), each)
    left, right = np.triu_indices(count, 1)
    apart = of_N[left] != of_N[right]
    left, right = left[apart], right[apart]
    one_NN, other_NN = (r.astype(float) @ r.T.astype(float) for r in (one_NE, other_NF))
    one_P, other_P = one_NN[left, right], other_NN[left, right]
    groups_P2 = groups_S[np.stack([of_N[left], of_N[right]], axis=1)]
    sample = PairSample(groups_P2, draws)
    spearman, pearson = sample.correlate(sample.rank(one_P), sample.rank(other_P))
    if pearson.value is None:
        return pearson, spearman, None, None
    generator = np.random.default_rng(seed)
    centred_P = one_P - one_P.mean()
    # Permuting sequences permutes the pairs: mean and spread of the other table do not change.
    scale = np.sqrt((centred_P**2).sum() * ((other_P - other_P.mean()) ** 2).sum())
    null_P = np.empty(PERMUTATIONS)
    for place in range(PERMUTATIONS):
        permuted_N = (
            generator.permutation(sequences)[:, None] * each + np.arange(each)
        ).ravel()  # fmt: skip
        null_P[place] = centred_P @ other_NN[permuted_N[left], permuted_N[right]] / scale
    return pearson, spearman, float(null_P.mean()), p_value(pearson.value, null_P)
