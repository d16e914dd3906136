r"""Correlation of two similarities (of hidden states and of expert usage) over sampled pairs.

Pairs are not independent, because they share tokens and tokens share sequences. The interval is a
first-order bootstrap over groups of sequences: the correlation is computed without each group, that
is, without every pair with an item of that group.

Legend: N items (tokens, or sequences), P pairs of them, G groups of sequences, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, draws_from_jackknife, missing
from moegeo_cli.geometry.simplex import distance_from_roots
from moegeo_cli.records.similarities import Hidden, Usage

PIECE = 1 << 21  # entries of a piece of gathered rows: 16 MiB
NULL_PERMUTATIONS = 20
FEW_PAIRS = 16


@dataclass(frozen=True)
class Items:
    """The compared items: tokens, or means over sequences. Items of one sequence are adjacent.

    `x_ND` are hidden states, `response_NE` their products with the router's rows, `root_NE` square
    roots of routing distributions, `usage_NE` the chosen experts: 1/√k at each of a token's k
    experts, or the mean of such vectors. `response_NE` and `root_NE` are None if the router has no
    logits. `sequence_N` and `group_N` are each item's sequence and group of sequences.
    """

    x_ND: np.ndarray
    response_NE: np.ndarray | None
    root_NE: np.ndarray | None
    usage_NE: np.ndarray
    sequence_N: np.ndarray
    group_N: np.ndarray

    def by_sequence(self, least: int) -> Items:
        """One item per sequence with at least `least` items: the mean over them.

        Distributions are averaged before the square root is taken.
        """
        sequences, first, counts = np.unique(self.sequence_N, return_index=True, return_counts=True)

        def mean(rows_NX: np.ndarray) -> np.ndarray:
            if not len(first):
                return rows_NX.astype(np.float64)
            sums = np.add.reduceat(rows_NX, first, axis=0, dtype=np.float64)
            return np.asarray((sums / counts[:, None])[counts >= least])

        return Items(
            x_ND=mean(self.x_ND),
            response_NE=None if self.response_NE is None else mean(self.response_NE),
            root_NE=None if self.root_NE is None else np.sqrt(mean(self.root_NE**2)),
            usage_NE=mean(self.usage_NE),
            sequence_N=sequences[counts >= least],
            group_N=self.group_N[first][counts >= least],
        )


def sample_pairs(
    sequence_N: np.ndarray, count: int, generator: np.random.Generator, *, within: bool
) -> np.ndarray:
    """Draw pairs of different items, each pair equally likely.

    Args:
        sequence_N: each item's sequence; the items of a sequence are adjacent.
        count: P, the number of pairs.
        generator: the random generator.
        within: True for pairs of one sequence, False for pairs of two sequences.

    Returns:
        Shape (P, 2); if there are at most `count` pairs, all of them, each once.
    """
    total = len(sequence_N)
    _, start, size = np.unique(sequence_N, return_index=True, return_counts=True)
    own_N, start_N = np.repeat(size, size), np.repeat(start, size)
    partners_N = own_N - 1 if within else total - own_N
    whole = int(partners_N.sum()) // 2
    if whole <= count:
        left, right = np.triu_indices(total, 1)
        kept = (sequence_N[left] == sequence_N[right]) == within
        return np.stack([left[kept], right[kept]], axis=1)
    left = generator.choice(total, count, p=partners_N / partners_N.sum())
    step = 1 + np.floor(generator.random(count) * partners_N[left]).astype(np.int64)
    if within:  # step cyclically within the sequence; the step never leads back to the item itself
        right = start_N[left] + (left - start_N[left] + step) % own_N[left]
    else:  # step cyclically over all items, past the item's own sequence
        right = (start_N[left] + own_N[left] + step - 1) % total
    return np.stack([left, right], axis=1)


def hidden_similarities(items: Items, pairs_P2: np.ndarray) -> dict[Hidden, np.ndarray]:
    """Similarities of the hidden states of pairs, each (P,), by name.

    "cosine" is the cosine of the hidden states; "visible" is xᵀ WᵀW x′, the part that the router
    sees (left out without logits).
    """
    norm_N = np.linalg.norm(items.x_ND, axis=1)
    unit_ND = items.x_ND / np.where(norm_N > 0, norm_N, 1.0)[:, None]
    found: dict[Hidden, np.ndarray] = {"cosine": _dots(unit_ND, pairs_P2)}
    if items.response_NE is not None:
        found["visible"] = _dots(items.response_NE, pairs_P2)
    return found


def usage_similarities(items: Items, pairs_P2: np.ndarray) -> dict[Usage, np.ndarray]:
    """Similarities of the expert usage of pairs, each (P,), by name.

    "distribution" is 1 − d/π with the Fisher-Rao distance d of the routing distributions (left out
    without logits); "chosen" is the share of chosen experts in common.
    """
    found: dict[Usage, np.ndarray] = {}
    if items.root_NE is not None:
        apart = [
            distance_from_roots(items.root_NE[rows[:, 0]], items.root_NE[rows[:, 1]])
            for rows in _pieces(pairs_P2, items.root_NE.shape[1])
        ]
        found["distribution"] = 1.0 - np.concatenate(apart or [np.zeros(0)]) / np.pi
    return found | {"chosen": _dots(items.usage_NE, pairs_P2)}


def permute_sequences(sequence_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Permute whole sequences, so that tokens of one sequence stay together.

    Returns:
        For each item, the number of the item at the same place of another sequence, (N,). A
        sequence that is too short is repeated.
    """
    sequences, start, size = np.unique(sequence_N, return_index=True, return_counts=True)
    other = generator.permutation(len(sequences))
    of_N = np.repeat(np.arange(len(sequences)), size)
    place_N = np.arange(len(sequence_N)) - start[of_N]
    return np.asarray(start[other[of_N]] + place_N % size[other[of_N]])


@dataclass(frozen=True)
class Similarity:
    """A similarity of each pair and its ranks.

    The first row of `ranks_HP` ranks all pairs; row g + 1 ranks them without the pairs of group g.
    """

    values_P: np.ndarray
    ranks_HP: np.ndarray


class PairSample:
    """Sampled pairs, with the subset of pairs that is left without each group of sequences.

    Args:
        groups_P2: the groups of both items of each pair.
        draws: the bootstrap draws.
    """

    def __init__(self, groups_P2: np.ndarray, draws: Draws) -> None:
        self.draws, self.count = draws, len(groups_P2)
        groups = draws.groups if len(draws.counts_BG) else 0
        without_GP = (groups_P2[None] != np.arange(groups)[:, None, None]).all(axis=2)
        self.kept_HP = np.concatenate([np.ones((1, self.count), dtype=bool), without_GP])

    def rank(self, values_P: np.ndarray) -> Similarity:
        """Rank a similarity over all pairs and without each group."""
        return Similarity(values_P, _ranks(values_P, self.kept_HP))

    def correlate(self, hidden: Similarity, usage: Similarity) -> tuple[Estimate, Estimate]:
        """Spearman's and Pearson's correlation over the pairs."""
        reason = None
        if self.count < FEW_PAIRS:
            reason = f"{self.count} pairs, fewer than {FEW_PAIRS}"
        elif np.ptp(hidden.values_P) == 0:
            reason = "all pairs have the same hidden similarity"
        elif np.ptp(usage.values_P) == 0:
            reason = "all pairs have the same usage"
        if reason is not None:
            return missing(reason, self.count), missing(reason, self.count)
        found = []
        for one_HP, other_HP in (
            (hidden.ranks_HP, usage.ranks_HP), (hidden.values_P[None], usage.values_P[None])
        ):  # fmt: skip
            value_H = _correlation(one_HP, other_HP, self.kept_HP)
            value = float(value_H[0])
            draws_B = draws_from_jackknife(value, value_H[1:], self.draws)
            found.append(Estimate(value, draws_B, self.count))
        return found[0], found[1]


def mean_absolute_correlations(
    hidden: Similarity, permuted: Sequence[Similarity]
) -> tuple[float, float]:
    """Mean absolute Spearman and Pearson correlation with permuted usage similarities: the null.

    Args:
        hidden: a similarity of hidden states.
        permuted: usage similarities after permuting sequences. One that does not vary counts as a
            correlation of 0.
    """
    if not len(hidden.values_P) or not permuted:
        return 0.0, 0.0
    found = []
    for one_P, others in (
        (hidden.ranks_HP[0], [d.ranks_HP[0] for d in permuted]),
        (hidden.values_P, [d.values_P for d in permuted]),
    ):
        own_P = one_P - one_P.mean()
        rows_NP = np.stack(others) - np.mean(others, axis=1, keepdims=True)
        sizes_N = np.linalg.norm(rows_NP, axis=1) * np.linalg.norm(own_P)
        known_N = sizes_N > 1e-9 * len(one_P)
        sizes_N = np.where(known_N, np.abs(rows_NP @ own_P) / np.maximum(sizes_N, 1e-300), 0.0)
        found.append(float(sizes_N.mean()))
    return found[0], found[1]


def rank_alone(values_P: np.ndarray) -> Similarity:
    """Rank a similarity over all pairs only, not without each group."""
    return Similarity(values_P, _ranks(values_P, np.ones((1, len(values_P)), dtype=bool)))


def _ranks(values_P: np.ndarray, kept_HP: np.ndarray) -> np.ndarray:
    """Ranks among the kept pairs of each row, with mean ranks for ties, shape (H, P)."""
    if not len(values_P):
        return np.zeros(kept_HP.shape)
    order = np.argsort(values_P, kind="stable")
    in_order = values_P[order]
    new = np.concatenate([[True], in_order[1:] > in_order[:-1]])
    counts = np.add.reduceat(kept_HP[:, order].astype(np.float64), np.flatnonzero(new), axis=1)
    middle = np.cumsum(counts, axis=1) - 0.5 * counts
    of_value = np.empty(len(order), dtype=np.int64)
    of_value[order] = np.cumsum(new) - 1
    return np.asarray(middle[:, of_value])


def _correlation(one_HP: np.ndarray, other_HP: np.ndarray, kept_HP: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the kept pairs of each row, shape (H,)."""
    weight = kept_HP / kept_HP.sum(axis=1, keepdims=True)

    def centred(values: np.ndarray) -> np.ndarray:
        return np.asarray(values - (weight * values).sum(axis=1, keepdims=True))

    a, b = centred(one_HP), centred(other_HP)
    sizes = (weight * a**2).sum(axis=1) * (weight * b**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.clip((weight * a * b).sum(axis=1) / np.sqrt(sizes), -1.0, 1.0))


def _pieces(pairs_P2: np.ndarray, width: int) -> Iterator[np.ndarray]:
    step = max(1, PIECE // max(width, 1))
    for start in range(0, len(pairs_P2), step):
        yield pairs_P2[start : start + step]


def _dots(rows_NX: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """Dot product of the two rows of each pair, in float64, shape (P,)."""
    found = [
        np.einsum("px,px->p", rows_NX[p[:, 0]].astype(float), rows_NX[p[:, 1]].astype(float))
        for p in _pieces(pairs_P2, rows_NX.shape[1])
    ]
    return np.concatenate(found) if found else np.zeros(0)
