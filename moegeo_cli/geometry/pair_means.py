r"""Means of dot products over all pairs of items, computed from sums by sequence.

:math:`\sum_{t,s} \langle a_t, b_s \rangle = \langle \sum_t a_t, \sum_s b_s \rangle`, so a mean over
millions of pairs is the product of two sums, and pairs need not be sampled.

Legend: S sequences, G groups of sequences, B draws, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.resample import Draws, Estimate, missing

NO_PAIR = "no two tokens make such a pair"
ONE_CHOICE = "all tokens choose the same experts"


@dataclass(frozen=True)
class PairMean:
    """A mean over pairs of items, stored as sums by groups of sequences.

    `top_GG` sums the products of pairs between two groups, `top_G` those of pairs within a group;
    `count_GG` and `count_G` are the numbers of pairs. The tables are symmetric with a zero
    diagonal. In a bootstrap draw, the weight of a pair between two groups is the product of the
    groups' counts; the weight of a pair within a group is the group's count.
    """

    top_GG: np.ndarray
    top_G: np.ndarray
    count_GG: np.ndarray
    count_G: np.ndarray

    def __add__(self, other: PairMean) -> PairMean:
        """The mean over the pairs of both operands."""
        return PairMean(
            self.top_GG + other.top_GG, self.top_G + other.top_G,
            self.count_GG + other.count_GG, self.count_G + other.count_G,
        )  # fmt: skip

    def __sub__(self, other: PairMean) -> PairMean:
        """The mean over the pairs of this operand that are not pairs of the other."""
        return PairMean(
            self.top_GG - other.top_GG, self.top_G - other.top_G,
            self.count_GG - other.count_GG, self.count_G - other.count_G,
        )  # fmt: skip

    @property
    def pairs(self) -> float:
        """Number of pairs."""
        return float(self.count_GG.sum() + self.count_G.sum())

    @property
    def value(self) -> float | None:
        """The mean; None without a pair."""
        return float(self.top_GG.sum() + self.top_G.sum()) / self.pairs if self.pairs else None

    def draws_of(self, draws: Draws) -> np.ndarray | None:
        """The mean in each bootstrap draw, shape (B,); None without draws."""
        if not len(draws.counts_BG):
            return None
        quadratic_B2 = draws.sum_quadratic(np.stack([self.top_GG, self.count_GG]))
        linear_B2 = draws.counts_BG @ np.stack([self.top_G, self.count_G], axis=1)
        top_B, count_B = (quadratic_B2 + linear_B2).T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(count_B > 0, top_B / count_B, np.nan))

    def estimate(self, draws: Draws, n: int | None = None) -> Estimate:
        """The mean with its draws."""
        if self.value is None:
            return missing(NO_PAIR, 0)
        return Estimate(self.value, self.draws_of(draws), n)

    def above_chance(self, chance: PairMean, draws: Draws, n: int | None = None) -> Estimate:
        """The mean o above a chance c, (o − c) / (1 − c); its draws pair those of o and c."""
        if self.value is None or chance.value is None:
            return missing(NO_PAIR, 0)
        if chance.value >= 1.0 - 1e-9:
            return missing(ONE_CHOICE, n)
        value = (self.value - chance.value) / (1.0 - chance.value)
        own_B, chance_B = self.draws_of(draws), chance.draws_of(draws)
        if own_B is None or chance_B is None:
            return Estimate(value, n=n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return Estimate(value, (own_B - chance_B) / (1.0 - chance_B), n)


@dataclass(frozen=True)
class SequenceSums:
    """The sum of the vectors of each sequence's items, and the number of items."""

    sums_SE: np.ndarray
    counts_S: np.ndarray

    def only(self, mask_S: np.ndarray) -> SequenceSums:
        """The sums with all other sequences set to zero."""
        return SequenceSums(self.sums_SE * mask_S[:, None], self.counts_S * mask_S)


def pairs_across_sequences(
    one: SequenceSums, other: SequenceSums, groups_S: np.ndarray
) -> PairMean:
    """Pairs of an item of `one` and an item of `other` in different sequences, in both orders."""
    groups = count_groups(groups_S)
    tables = []
    for a, b in ((one.sums_SE, other.sums_SE), (one.counts_S[:, None], other.counts_S[:, None])):
        table_GG = sum_by_group(a, groups_S, groups) @ sum_by_group(b, groups_S, groups).T
        same_G = sum_by_group(np.einsum("se,se->s", a, b), groups_S, groups)
        tables += [both_orders(table_GG), 2.0 * (table_GG.diagonal() - same_G)]
    return PairMean(*tables)


def pairs_within_sequences(
    one: SequenceSums, other: SequenceSums, groups_S: np.ndarray
) -> PairMean:
    """Pairs of an item of `one` and an item of `other` in the same sequence, in both orders."""
    groups = count_groups(groups_S)
    none_GG = np.zeros((groups, groups))
    top_S = np.einsum("se,se->s", one.sums_SE, other.sums_SE)
    return PairMean(
        none_GG, 2.0 * sum_by_group(top_S, groups_S, groups),
        none_GG, 2.0 * sum_by_group(one.counts_S * other.counts_S, groups_S, groups),
    )  # fmt: skip


def pairs_by_label(
    one: SequenceSums, other: SequenceSums, labels_S: np.ndarray, groups_S: np.ndarray
) -> tuple[PairMean, PairMean]:
    """Pairs of items of different sequences, split into equal and different labels.

    Args:
        one: sums of the first items.
        other: sums of the second items.
        labels_S: a number for each sequence; −1 for none, and then it is in no pair.
        groups_S: each sequence's group.

    Returns:
        The mean over pairs with the same label, and over pairs with different labels.
    """
    known_S = labels_S >= 0
    everything = pairs_across_sequences(one.only(known_S), other.only(known_S), groups_S)
    within = everything - everything
    for label in np.unique(labels_S[known_S]):
        own_S = labels_S == label
        within = within + pairs_across_sequences(one.only(own_S), other.only(own_S), groups_S)
    return within, everything - within


def count_groups(groups_S: np.ndarray) -> int:
    """Number of groups, G."""
    return int(groups_S.max()) + 1 if len(groups_S) else 0


def sum_by_group(values_S: np.ndarray, groups_S: np.ndarray, groups: int) -> np.ndarray:
    """Sums over each group's sequences: (S, ...) becomes (G, ...)."""
    sums = np.zeros((groups, *values_S.shape[1:]))
    np.add.at(sums, groups_S, values_S)
    return sums


def both_orders(table_GG: np.ndarray) -> np.ndarray:
    """The table and its transpose, without the diagonal."""
    both_GG = table_GG + table_GG.T
    np.fill_diagonal(both_GG, 0.0)
    return np.asarray(both_GG)
