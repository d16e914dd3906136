r"""Overlap: the share of experts that two tokens have in common, and how much of it is chance.

A token's usage u_t is 1/√k at each of its k chosen experts and 0 elsewhere, so ⟨u_t, u_s⟩ is the
share of experts that two tokens have in common: |A ∩ B| / K.

.. math:: \text{above chance} = (o - c) / (1 - c)

Chance c is the mean overlap of all pairs of tokens of the layer, which depends only on the load.
Permuting the choices among tokens does not change c, and then the overlap above chance is 0 on
average, however unequal the load is.

Legend: T tokens, K experts chosen per token, E experts, S sequences, G groups of sequences,
C classes of tokens.
Source: [MY] for the question; the estimator is ours, with a correction like Cohen's kappa (1960).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from moegeo_cli.geometry.pair_means import (
    PairMean,
    SequenceSums,
    both_orders,
    count_groups,
    pairs_across_sequences,
    pairs_by_label,
    pairs_within_sequences,
    sum_by_group,
)

PIECE = 1 << 22  # entries of a piece of (group, class, expert): 32 MiB


@dataclass(frozen=True)
class Usage:
    """One router's choices. Tokens without a choice (dropped by a capacity) are in no pair.

    `selected_TK` holds expert numbers, −1 for an empty slot; `sequence_T` is each token's
    sequence, `groups_S` each sequence's group.
    """

    selected_TK: np.ndarray
    sequence_T: np.ndarray
    groups_S: np.ndarray
    experts: int

    @cached_property
    def chosen_T(self) -> np.ndarray:
        """Number of experts that each token chose."""
        return np.asarray((self.selected_TK >= 0).sum(axis=1))

    @property
    def tokens(self) -> int:
        """Number of tokens that chose at least one expert."""
        return int((self.chosen_T > 0).sum())

    def part(self, chosen_T: np.ndarray) -> Usage:
        """The usage of some tokens, chosen by a mask or by indices."""
        return Usage(
            self.selected_TK[chosen_T], self.sequence_T[chosen_T], self.groups_S, self.experts
        )

    @cached_property
    def sums(self) -> SequenceSums:
        """Σ u_t of each sequence."""
        used_T = self.sequence_T[self.chosen_T > 0]
        tokens_S = np.bincount(used_T, minlength=len(self.groups_S)).astype(np.float64)
        return SequenceSums(self.sum_by(self.sequence_T, len(self.groups_S)), tokens_S)

    @cached_property
    def means(self) -> SequenceSums:
        """Mean u_t of each sequence; each sequence then counts as one item."""
        sums_SE, tokens_S = self.sums.sums_SE, self.sums.counts_S
        return SequenceSums(
            sums_SE / np.maximum(tokens_S, 1.0)[:, None], (tokens_S > 0).astype(np.float64)
        )

    @cached_property
    def dispatch_SE(self) -> np.ndarray:
        """Number of (token, slot) pairs of each sequence that went to each expert."""
        return self.sum_by(self.sequence_T, len(self.groups_S), weighted=False)

    @property
    def uniform_chance(self) -> float | None:
        """Mean overlap of tokens that choose as many experts uniformly: K/E if K is constant."""
        used_T = self.chosen_T[self.chosen_T > 0]
        return float(np.sqrt(used_T).mean()) ** 2 / self.experts if len(used_T) else None

    @cached_property
    def across_sequences(self) -> PairMean:
        """Pairs of tokens of different sequences."""
        return pairs_across_sequences(self.sums, self.sums, self.groups_S)

    @cached_property
    def within_sequences(self) -> PairMean:
        """Pairs of two tokens of one sequence."""
        whole = pairs_within_sequences(self.sums, self.sums, self.groups_S)
        groups = count_groups(self.groups_S)
        alone_G = 2.0 * sum_by_group(self.sums.counts_S, self.groups_S, groups)
        return PairMean(
            whole.top_GG, whole.top_G - alone_G, whole.count_GG, whole.count_G - alone_G
        )

    @cached_property
    def chance(self) -> PairMean:
        """All pairs of tokens; their mean overlap is what the load alone gives."""
        return self.across_sequences + self.within_sequences

    def labelled(self, labels_S: np.ndarray) -> tuple[PairMean, PairMean]:
        """Pairs of tokens of different sequences: with the same label, and with different ones."""
        return pairs_by_label(self.sums, self.sums, labels_S, self.groups_S)

    def same_class(self, class_T: np.ndarray) -> PairMean:
        """Pairs of tokens of different sequences and the same class (position or token id).

        Args:
            class_T: a number ≥ 0 for each token.
        """
        groups = count_groups(self.groups_S)
        top_GG, count_GG = np.zeros((2, groups, groups))
        # To subtract: pairs within a sequence, and each token with itself.
        top_G, count_G = np.zeros((2, groups))
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
        """Sums of usage (or of choices, if not `weighted`) by each token's cell: (cells, E)."""
        taken_TK = self.selected_TK >= 0
        place_TK = cell_T[:, None] * self.experts + self.selected_TK
        weights = self._weights(taken_TK) if weighted else None
        sums = np.bincount(place_TK[taken_TK], weights, cells * self.experts)
        return np.asarray(sums.reshape(cells, self.experts).astype(np.float64))

    def sparse_sums(self, cell_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nonzero sums of usage by cell: their indices cell · E + expert, and their values."""
        taken_TK = self.selected_TK >= 0
        place_TK = cell_T[:, None] * self.experts + self.selected_TK
        keys, inverse = np.unique(place_TK[taken_TK], return_inverse=True)
        return keys, np.bincount(inverse, self._weights(taken_TK))

    def _weights(self, taken_TK: np.ndarray) -> np.ndarray:
        """1/√k for each filled slot."""
        size_T = 1.0 / np.sqrt(np.maximum(self.chosen_T, 1))
        return np.asarray(np.broadcast_to(size_T[:, None], taken_TK.shape)[taken_TK])

    def _classes(self, class_T: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield pieces of whole classes with at least two tokens: token rows, and their classes."""
        used = np.flatnonzero(self.chosen_T > 0)
        _, inverse, counts = np.unique(class_T[used], return_inverse=True, return_counts=True)
        used, inverse = used[counts[inverse] > 1], inverse[counts[inverse] > 1]
        order = np.argsort(inverse, kind="stable")
        used, place = used[order], np.unique(inverse[order], return_inverse=True)[1]
        at_once = max(1, PIECE // (max(count_groups(self.groups_S), 1) * self.experts))
        for start in range(0, int(place[-1]) + 1 if len(place) else 0, at_once):
            first, last = np.searchsorted(place, [start, start + at_once])
            yield used[first:last], place[first:last] - start
