r"""How many experts tokens have in common, and how many of them the load explains.

A token's usage u_t is 1/√k where it chose one of its k experts and 0 elsewhere, so that
⟨u_t, u_s⟩ is the share of the experts that two tokens have in common: |A ∩ B| / K.

.. math:: \text{above chance} = (o - c) / (1 - c)

Chance c is the overlap of two tokens drawn from the same layer, whatever their sequences: what its
own load alone gives. Dealing the choices to other tokens at random leaves c as it is, and what
stands above it is then 0 in the mean, however unequal the load.

Legend: T tokens, K experts chosen per token, E experts, S sequences, G groups of sequences,
C classes of tokens.
Source: [MY] for the question; the estimator is ours, the correction of the form of Cohen (1960).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moegeo_cli.geometry.pair_means import (
    PairMean,
    Sums,
    both_orders,
    count_groups,
    pairs_apart,
    pairs_labelled,
    pairs_together,
    sum_by_group,
)

PIECE = 1 << 22  # entries of a piece of (group, class, expert): 32 MiB


@dataclass(frozen=True)
class Usage:
    """One router's choices; tokens that chose nothing (beyond a capacity) are in no pair.

    `selected_TK` holds expert numbers, −1 for an empty slot, and `sequence_T` the sequences of the
    tokens; `groups_S` gives each sequence's group.
    """

    selected_TK: np.ndarray
    sequence_T: np.ndarray
    groups_S: np.ndarray
    experts: int

    @cached_property
    def chosen_T(self) -> np.ndarray:
        """How many experts each token chose."""
        return np.asarray((self.selected_TK >= 0).sum(axis=1))

    @property
    def tokens(self) -> int:
        """How many tokens chose something."""
        return int((self.chosen_T > 0).sum())

    def part(self, chosen_T: np.ndarray) -> Usage:
        """The usage of some tokens, chosen by a mask or by positions."""
        return Usage(
            self.selected_TK[chosen_T], self.sequence_T[chosen_T], self.groups_S, self.experts
        )

    @cached_property
    def sums(self) -> Sums:
        """Σ u_t of each sequence."""
        used_T = self.sequence_T[self.chosen_T > 0]
        tokens_S = np.bincount(used_T, minlength=len(self.groups_S)).astype(np.float64)
        return Sums(self.sum_by(self.sequence_T, len(self.groups_S)), tokens_S)

    @cached_property
    def means(self) -> Sums:
        """Mean u_t of each sequence, which then counts as one thing."""
        sums_SE, tokens_S = self.sums.sums_SE, self.sums.counts_S
        return Sums(sums_SE / np.maximum(tokens_S, 1.0)[:, None], (tokens_S > 0).astype(np.float64))

    @cached_property
    def dispatch_SE(self) -> np.ndarray:
        """How many (token, slot) pairs of each sequence went to each expert."""
        return self.sum_by(self.sequence_T, len(self.groups_S), weighted=False)

    @property
    def uniform_chance(self) -> float | None:
        """Overlap of two tokens that choose as many experts uniformly: K/E where K is one."""
        used_T = self.chosen_T[self.chosen_T > 0]
        return float(np.sqrt(used_T).mean()) ** 2 / self.experts if len(used_T) else None

    @cached_property
    def unrelated(self) -> PairMean:
        """Pairs of tokens of different sequences."""
        return pairs_apart(self.sums, self.sums, self.groups_S)

    @cached_property
    def within_sequences(self) -> PairMean:
        """Pairs of two tokens of one sequence."""
        whole = pairs_together(self.sums, self.sums, self.groups_S)
        groups = count_groups(self.groups_S)
        alone_G = 2.0 * sum_by_group(self.sums.counts_S, self.groups_S, groups)
        return PairMean(
            whole.top_GG, whole.top_G - alone_G, whole.count_GG, whole.count_G - alone_G
        )

    @cached_property
    def chance(self) -> PairMean:
        """All pairs of two tokens: what the load alone gives."""
        return self.unrelated + self.within_sequences

    def labelled(self, labels_S: np.ndarray) -> tuple[PairMean, PairMean]:
        """Pairs of tokens of different sequences with one label, and with two."""
        return pairs_labelled(self.sums, self.sums, labels_S, self.groups_S)

    def same_class(self, class_T: np.ndarray) -> PairMean:
        """Pairs of tokens of different sequences and one class: a position, or a token id.

        Args:
            class_T: a number ≥ 0 for each token.
        """
        groups = count_groups(self.groups_S)
        top_GG, count_GG = np.zeros((2, groups, groups))
        top_G, count_G = np.zeros((2, groups))  # of pairs within a sequence, and of tokens alone
        for rows, place in self._classes(class_T):
            size, piece = int(place.max()) + 1, self.part(rows)
            cell = self.groups_S[piece.sequence_T] * size + place
            sums_GX = piece.sum_by(cell, groups * size).reshape(groups, -1)
            counts_GC = np.bincount(cell, minlength=groups * size).reshape(groups, size)
            top_GG += sums_GX @ sums_GX.T
            count_GG += counts_GC.astype(float) @ counts_GC.T
            cells, of_token, counts = np.unique(
                piece.sequence_T * size + place, return_inverse=True, return_counts=True
            )
            keys, sums = piece.sparse_sums(of_token)
            of_cell = self.groups_S[cells // size]
            count_G += np.bincount(of_cell, counts.astype(float) ** 2, groups)
            top_G += np.bincount(of_cell[keys // self.experts], sums**2, groups)
        return PairMean(
            both_orders(top_GG), 2.0 * (top_GG.diagonal() - top_G),
            both_orders(count_GG), 2.0 * (count_GG.diagonal() - count_G),
        )  # fmt: skip

    def sum_by(self, cell_T: np.ndarray, cells: int, *, weighted: bool = True) -> np.ndarray:
        """Sums of usage, or of choices, by some number of each token: shape (cells, E)."""
        taken_TK = self.selected_TK >= 0
        place_TK = cell_T[:, None] * self.experts + self.selected_TK
        weights = self._weights(taken_TK) if weighted else None
        sums = np.bincount(place_TK[taken_TK], weights, cells * self.experts)
        return np.asarray(sums.reshape(cells, self.experts).astype(np.float64))

    def sparse_sums(self, cell_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same where most are zero: cell · E + expert of those that are not, and the sums."""
        taken_TK = self.selected_TK >= 0
        place_TK = cell_T[:, None] * self.experts + self.selected_TK
        keys, inverse = np.unique(place_TK[taken_TK], return_inverse=True)
        return keys, np.bincount(inverse, self._weights(taken_TK))

    def _weights(self, taken_TK: np.ndarray) -> np.ndarray:
        """1/√k of each slot that is filled."""
        size_T = 1.0 / np.sqrt(np.maximum(self.chosen_T, 1))
        return np.asarray(np.broadcast_to(size_T[:, None], taken_TK.shape)[taken_TK])

    def _classes(self, class_T: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of whole classes of two tokens or more, piece by piece, with their class in it."""
        used = np.flatnonzero(self.chosen_T > 0)
        _, inverse, counts = np.unique(class_T[used], return_inverse=True, return_counts=True)
        used, inverse = used[counts[inverse] > 1], inverse[counts[inverse] > 1]
        order = np.argsort(inverse, kind="stable")
        used, place = used[order], np.unique(inverse[order], return_inverse=True)[1]
        at_once = max(1, PIECE // (max(count_groups(self.groups_S), 1) * self.experts))
        for start in range(0, int(place[-1]) + 1 if len(place) else 0, at_once):
            first, last = np.searchsorted(place, [start, start + at_once])
            yield used[first:last], place[first:last] - start
