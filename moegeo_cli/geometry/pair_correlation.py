r"""Whether two similarities go together over sampled pairs, and how sure that is.

Pairs share tokens, and tokens share sequences, so pairs are no independent sample: a group of
sequences is left out with every pair that it is in, and the interval follows from what that
changes (the bootstrap over groups, to first order).

Legend: N items (tokens, or sequences), P pairs of them, G groups of sequences, D width, E experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, draws_from_jackknife, missing
from moegeo_cli.geometry.simplex import distance_from_roots

PIECE = 1 << 21  # entries of a piece of gathered rows: 16 MiB
NULL_DEALS = 20
FEW_PAIRS = 16


@dataclass(frozen=True)
class Items:
    """What is compared: rows by item, and the sequence and group that each item is of.

    `x_ND` are hidden states, `response_NE` what the router's rows make of them (None where its
    logits say nothing), `root_NE` the roots of routing distributions (None likewise), `usage_NE`
    what was chosen: 1/√k at each chosen expert, or the mean of that.
    """

    x_ND: np.ndarray
    response_NE: np.ndarray | None
    root_NE: np.ndarray | None
    usage_NE: np.ndarray
    sequence_N: np.ndarray
    group_N: np.ndarray

    def by_sequence(self, least: int) -> Items:
        """The means over the items of each sequence that has at least so many.

        The root of a mean distribution is that of the mean of the distributions.
        """
        sequences, inverse, counts = np.unique(
            self.sequence_N, return_inverse=True, return_counts=True
        )

        def mean(rows_NX: np.ndarray) -> np.ndarray:
            sums = np.zeros((len(sequences), rows_NX.shape[1]))
            np.add.at(sums, inverse, rows_NX)
            return np.asarray((sums / counts[:, None])[counts >= least])

        first = np.unique(inverse, return_index=True)[1]
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
    """Pairs of different items, of one sequence or of two, each equally likely, shape (P, 2).

    All of them, once each, where there are no more than `count`.

    Args:
        sequence_N: each item's sequence; items of one lie together.
        count: P.
        generator: draws them.
        within: of one sequence; else of two.
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
    if within:  # round the sequence, never back to oneself
        right = start_N[left] + (left - start_N[left] + step) % own_N[left]
    else:  # round all items, past one's own sequence
        right = (start_N[left] + own_N[left] + step - 1) % total
    return np.stack([left, right], axis=1)


def hidden_similarities(items: Items, pairs_P2: np.ndarray) -> dict[str, np.ndarray]:
    """Hidden similarities of pairs, by name.

    "cosine" of the hidden states, and "visible", xᵀ WᵀW x′: the part that the router can see.
    """
    norm_N = np.linalg.norm(items.x_ND, axis=1)
    found = {"cosine": _dots(items.x_ND / np.where(norm_N > 0, norm_N, 1.0)[:, None], pairs_P2)}
    if items.response_NE is not None:
        found["visible"] = _dots(items.response_NE, pairs_P2)
    return found


def usage_similarities(items: Items, pairs_P2: np.ndarray) -> dict[str, np.ndarray]:
    """Usage similarities of pairs, by name.

    "distribution" is 1 − d/π with the Fisher-Rao distance d of the routing distributions, "chosen"
    the share of the chosen experts that are in common.
    """
    found = {}
    if items.root_NE is not None:
        apart = [
            distance_from_roots(items.root_NE[rows[:, 0]], items.root_NE[rows[:, 1]])
            for rows in _pieces(pairs_P2, items.root_NE.shape[1])
        ]
        found["distribution"] = 1.0 - np.concatenate(apart or [np.zeros(0)]) / np.pi
    return found | {"chosen": _dots(items.usage_NE, pairs_P2)}


def deal_sequences(sequence_N: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """For each item the item of another sequence that stands where it stands: places, shape (N,).

    Whole sequences trade places, so what tokens of one have in common stays together; a shorter one
    is gone through again.
    """
    sequences, start, size = np.unique(sequence_N, return_index=True, return_counts=True)
    other = generator.permutation(len(sequences))
    of_N = np.repeat(np.arange(len(sequences)), size)
    place_N = np.arange(len(sequence_N)) - start[of_N]
    return np.asarray(start[other[of_N]] + place_N % size[other[of_N]])


def correlate(
    one_P: np.ndarray, other_P: np.ndarray, groups_P2: np.ndarray, draws: Draws
) -> tuple[Estimate, Estimate]:
    """Spearman's and Pearson's correlation over pairs.

    Args:
        one_P: a similarity of each pair.
        other_P: another one.
        groups_P2: the groups of sequences that each pair is of.
        draws: the bootstrap draws.
    """
    count = len(one_P)
    if count < FEW_PAIRS:
        reason = f"{count} pairs, fewer than {FEW_PAIRS}"
        return missing(reason, count), missing(reason, count)
    if np.ptp(one_P) == 0 or np.ptp(other_P) == 0:
        same = "the same hidden similarity" if np.ptp(one_P) == 0 else "the same usage"
        reason = f"all pairs have {same}"
        return missing(reason, count), missing(reason, count)
    groups = draws.groups if len(draws.counts_BG) else 0
    without_GP = (groups_P2[None] != np.arange(groups)[:, None, None]).all(axis=2)
    kept_HP = np.concatenate([np.ones((1, count), dtype=bool), without_GP])
    spearman_H = _correlation(_ranks(one_P, kept_HP), _ranks(other_P, kept_HP), kept_HP)
    pearson_H = _correlation(one_P[None], other_P[None], kept_HP)
    found = [
        Estimate(float(h[0]), draws_from_jackknife(float(h[0]), h[1:], draws), count)
        for h in (spearman_H, pearson_H)
    ]
    return found[0], found[1]


def correlation_sizes(one_P: np.ndarray, dealt: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean size of Spearman's and of Pearson's correlation with each of some similarities.

    Args:
        one_P: a similarity of each pair.
        dealt: others, where nothing ties them to it; one that does not vary has a correlation of 0.
    """
    if not len(one_P) or not dealt:
        return 0.0, 0.0
    kept = np.ones((1, len(one_P)), dtype=bool)
    ranks = _ranks(one_P, kept)
    sizes = np.abs([
        [
            _correlation(ranks, _ranks(other_P, kept), kept)[0],
            _correlation(one_P[None], other_P[None], kept)[0],
        ]
        for other_P in dealt
    ])  # fmt: skip
    spearman, pearson = np.nan_to_num(sizes).mean(axis=0)
    return float(spearman), float(pearson)


def _ranks(values_P: np.ndarray, kept_HP: np.ndarray) -> np.ndarray:
    """Ranks among the kept ones of each row, ties sharing their mean: shape (H, P)."""
    order = np.argsort(values_P, kind="stable")
    in_order = values_P[order]
    new = np.concatenate([[True], in_order[1:] > in_order[:-1]])
    counts = np.add.reduceat(kept_HP[:, order].astype(np.float64), np.flatnonzero(new), axis=1)
    middle = np.cumsum(counts, axis=1) - 0.5 * counts
    of_value = np.empty(len(order), dtype=np.int64)
    of_value[order] = np.cumsum(new) - 1
    return np.asarray(middle[:, of_value])


def _correlation(one_HP: np.ndarray, other_HP: np.ndarray, kept_HP: np.ndarray) -> np.ndarray:
    """Pearson's correlation over the kept ones of each row, shape (H,)."""
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
    """Products of the rows of each pair, in float64."""
    found = [
        np.einsum("px,px->p", rows_NX[p[:, 0]].astype(float), rows_NX[p[:, 1]].astype(float))
        for p in _pieces(pairs_P2, rows_NX.shape[1])
    ]
    return np.concatenate(found) if found else np.zeros(0)
