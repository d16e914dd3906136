r"""Compares two models' routing of the same tokens without matching their experts.

Each model gives a table of similarities between tokens, Σ √(p_te p_se) of their routing
distributions (the cosine of half their Fisher-Rao distance): renumbering experts changes none of
it, and two models with other experts can be compared. Mantel's test correlates the tables' entries
and asks how often as much comes from dealing whole sequences of one model to others: tokens of one
sequence resemble each other, so dealing tokens would find everything significant. Pairs within a
sequence are left out for the same reason.

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


def even_rows(sequence_T: np.ndarray, seed: int) -> np.ndarray:
    """The same number of tokens from each sequence, spread evenly: sequences can be permuted.

    Args:
        sequence_T: each token's sequence; tokens of one lie together.
        seed: of the choice of sequences, where there are too many.

    Returns:
        Rows by sequence, shape (S, M); sequences that are too short are not among them.
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
    """Correlations of two tables of similarities, their mean under permutation, and a p-value.

    Args:
        one_NE: roots of one model's routing distributions, M tokens of each sequence together.
        other_NF: the same tokens' of the other.
        groups_S: the group of each of these sequences.
        draws: the bootstrap draws.
        seed: of the permutations.

    Returns:
        Pearson's and Spearman's correlation over pairs of tokens of different sequences; the mean
        of Pearson's, and how often it reaches as much, where sequences trade places.
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
    # The pairs stay the same pairs, so neither mean nor spread of the other table changes.
    scale = np.sqrt((centred_P**2).sum() * ((other_P - other_P.mean()) ** 2).sum())
    null_P = np.empty(PERMUTATIONS)
    for place in range(PERMUTATIONS):
        dealt_N = (
            generator.permutation(sequences)[:, None] * each + np.arange(each)
        ).ravel()  # fmt: skip
        null_P[place] = centred_P @ other_NN[dealt_N[left], dealt_N[right]] / scale
    return pearson, spearman, float(null_P.mean()), p_value(pearson.value, null_P)
