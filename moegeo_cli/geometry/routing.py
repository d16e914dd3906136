r"""From the tokens of one router to its sums by sequence, from which its metrics are computed.

One pass reads the logits, in pieces that fit the processor's cache. Dispersion needs the mean
distribution first, so it is added afterwards, over tokens whose logits were kept. All arithmetic is
in float64. Arrays are in Fortran order, because NumPy reduces along short rows faster that way.

Legend: T tokens, S sequences, E experts, K experts chosen per token, N tokens of a piece,
M token means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from moegeo_cli.geometry.selection import SelectionRule, check_selection
from moegeo_cli.geometry.simplex import distance_from_squared_chord, distance_max, entropy
from moegeo_cli.geometry.sums import TOKEN_MEANS, RouterTokens, RoutingSums
from moegeo_cli.scorings import Scoring, find_scoring

PIECE = 1 << 16  # entries of a piece: half a megabyte of float64


def measure_routing(tokens: RouterTokens) -> RoutingSums:
    """All sums of one router, by sequence, including dispersion.

    Args:
        tokens: one router's tokens, over the whole probe. Tokens with a non-finite logit or weight
            are counted and left out of the sums.

    Returns:
        Sums in float64; token means are not averaged yet.

    Raises:
        UnsupportedArchitectureError: an unknown scoring.
    """
    sums = sum_tokens(tokens)
    if tokens.logits_TE is None:
        return sums
    return add_dispersion(
        sums, tokens.logits_TE, tokens.weights_TK, tokens.sequence_T, tokens.scoring, tokens.masked
    )


def sum_tokens(tokens: RouterTokens) -> RoutingSums:
    """The sums of one router over some whole sequences, without dispersion (0, with count 0).

    Raises:
        UnsupportedArchitectureError: an unknown scoring.
    """
    return _RoutingSummation(tokens).run()


def add_dispersion(
    sums: RoutingSums,
    logits_ME: np.ndarray,
    weights_MK: np.ndarray,
    sequence_M: np.ndarray,
    scoring: str,
    masked: Sequence[int] = (),
) -> RoutingSums:
    """Add the dispersion of some tokens around the mean distribution of all tokens.

    Args:
        sums: the sums of all tokens.
        logits_ME: raw logits of some tokens; non-finite ones are left out.
        weights_MK: combine weights of these tokens.
        sequence_M: sequences of these tokens.
        scoring: name of the scoring.
        masked: experts that are switched off.

    Returns:
        New sums; unchanged for a hash router, or with fewer than two experts.
    """
    open_E = np.setdiff1d(np.arange(sums.experts), masked)
    if len(open_E) < 2 or sums.hashed:
        return sums
    rule, furthest = find_scoring(scoring), distance_max(len(open_E))
    total = max(sums.tokens - sums.nonfinite_tokens, 1)
    root_mean_E = np.sqrt(sums.probability_SE[:, open_E].sum(axis=0) / total)
    column = TOKEN_MEANS.index("dispersion")
    values_SM, counts_SM = sums.values_SM.copy(), sums.counts_SM.copy()
    rows = max(64, PIECE // sums.experts)
    finite_M = np.isfinite(weights_MK).all(axis=1)
    values_M = np.zeros(len(logits_ME))
    for start in range(0, len(logits_ME), rows):
        piece = slice(start, start + rows)
        z_NE = np.asfortranarray(logits_ME[piece][:, open_E]).astype(np.float64)
        finite_M[piece] &= np.isfinite(z_NE).all(axis=1)
        if not (own_N := finite_M[piece]).any():
            continue
        gap_NE = _roots(rule.log_score(z_NE if own_N.all() else z_NE[own_N]))[0] - root_mean_E
        chord_N = np.einsum("ne,ne->n", gap_NE, gap_NE)
        values_M[start + np.flatnonzero(own_N)] = distance_from_squared_chord(chord_N) / furthest
    size = len(values_SM)
    values_SM[:, column] = np.bincount(sequence_M, weights=values_M, minlength=size)
    counts_SM[:, column] = np.bincount(sequence_M, weights=finite_M, minlength=size)
    return dataclasses.replace(sums, values_SM=values_SM, counts_SM=counts_SM)


class _RoutingSummation:
    """The summation of one router's tokens: arrays by token are filled piece by piece."""

    def __init__(self, tokens: RouterTokens) -> None:
        sequence_T = np.asarray(tokens.sequence_T)
        selected_TK, weights_TK = tokens.selected_TK, tokens.weights_TK
        logits_TE = tokens.logits_TE
        if (np.diff(sequence_T) < 0).any():
            order = np.argsort(sequence_T, kind="stable")
            sequence_T, selected_TK, weights_TK = (
                a[order] for a in (sequence_T, selected_TK, weights_TK)
            )
            logits_TE = None if logits_TE is None else logits_TE[order]
        self.sequence_T = sequence_T
        self.selected_TK, self.weights_TK = map(np.asfortranarray, (selected_TK, weights_TK))
        self.logits_TE = logits_TE
        self.count = len(sequence_T)
        last = int(sequence_T[-1]) + 1 if self.count else 0
        self.sequences = last if tokens.sequences is None else tokens.sequences
        self.experts = int(tokens.experts or 0) if logits_TE is None else int(logits_TE.shape[1])
        self.open_E = np.setdiff1d(np.arange(self.experts), tokens.masked)
        self.masked = len(self.open_E) < self.experts
        self.choices = len(self.open_E)  # experts that can be chosen
        self.furthest = distance_max(self.choices) if self.choices > 1 else math.nan
        self.log_experts = math.log(self.choices) if self.choices > 1 else math.nan
        self.scoring = find_scoring(tokens.scoring) if logits_TE is not None else None
        self.top_k = tokens.top_k or 0
        self.rule = self._rule(tokens)
        self.values = {name: np.zeros(self.count) for name in TOKEN_MEANS}
        self.counted = {name: np.zeros(self.count, dtype=bool) for name in TOKEN_MEANS}
        self.finite_T = np.isfinite(self.weights_TK).all(axis=1)
        self.contradicted = 0
        self.logit_max_T = np.zeros(self.count)
        self.probability_SE = np.zeros((self.sequences, self.experts))

    def _rule(self, tokens: RouterTokens) -> SelectionRule | None:
        """The selection rule; None if it is not known or selects every expert."""
        if self.scoring is None or not tokens.top_k:
            return None
        if tokens.top_k != self.selected_TK.shape[1] or tokens.top_k >= self.choices:
            return None
        bias_E = tokens.selection_bias_E
        if bias_E is not None:
            bias_E = np.asarray(bias_E, float)
            bias_E = bias_E if tokens.groups else bias_E[self.open_E]
        return SelectionRule(
            tokens.top_k, tokens.scoring, bias_E, tokens.groups, tokens.group_score, tokens.bias_on
        )

    def run(self) -> RoutingSums:
        if self.logits_TE is not None and self.choices > 1 and self.scoring is not None:
            self._measure_logits(self.logits_TE, self.scoring)
        dispatch_SE, combine_SE = self._measure_dispatch()
        counts_SM = np.stack([self._sum(self.counted[name]) for name in TOKEN_MEANS], axis=1)
        logit_max_S = np.zeros(self.sequences)  # 0 for a sequence without tokens
        np.maximum.at(logit_max_S, self.sequence_T, self.logit_max_T)
        return RoutingSums(
            values_SM=np.stack([self._sum(self.values[name]) for name in TOKEN_MEANS], axis=1),
            counts_SM=counts_SM,
            sequence_tokens=np.bincount(self.sequence_T, minlength=self.sequences),
            dispatch_SE=dispatch_SE,
            probability_SE=self.probability_SE,
            combine_SE=combine_SE,
            logit_max_S=logit_max_S,
            nonfinite_S=self._sum(~self.finite_T),
            top_k=self.top_k,
            contradicted=self.contradicted if self.rule is not None else -1,
            margin_in_logits=self.rule is not None and self.rule.in_logits,
            hashed=self.logits_TE is None,
        )

    def _sum(self, values_T: np.ndarray) -> np.ndarray:
        """Sum by sequence."""
        return np.bincount(self.sequence_T, weights=values_T, minlength=self.sequences)

    def _pieces(self) -> Iterator[slice]:
        rows = max(64, PIECE // self.experts)
        for start in range(0, self.count, rows):
            yield slice(start, min(start + rows, self.count))

    def _open(self, logits_NE: np.ndarray) -> np.ndarray:
        """Logits of the experts that can be chosen, in Fortran order."""
        return np.asfortranarray(logits_NE[:, self.open_E] if self.masked else logits_NE)

    def _measure_logits(self, logits_TE: np.ndarray, scoring: Scoring) -> None:
        """Everything that needs the logits of one token at a time."""
        for piece in self._pieces():
            piece_NE = self._open(logits_TE[piece])
            rows: slice | np.ndarray = piece
            if not np.isfinite(piece_NE).all():
                self.finite_T[piece] &= np.isfinite(piece_NE).all(axis=1)
            if not self.finite_T[piece].all():
                rows = piece.start + np.flatnonzero(self.finite_T[piece])
                piece_NE = self._open(logits_TE[rows])
            if not len(piece_NE):
                continue
            self._measure_piece(rows, piece_NE, scoring)
            if self.rule is not None:
                if self.masked and self.rule.groups:  # groups include masked experts
                    piece_NE = np.asfortranarray(logits_TE[rows])
                self._measure_selection(self.rule, rows, piece_NE)
        for name in ("fsi", "entropy_token", "logit_z"):
            self.counted[name] = self.finite_T

    def _measure_piece(
        self, rows: slice | np.ndarray, logits_NE: np.ndarray, scoring: Scoring
    ) -> None:
        """Values that need the routing distributions of a piece of tokens."""
        z_NE = logits_NE.astype(np.float64)
        highest_N, lowest_N = z_NE.max(axis=1), z_NE.min(axis=1)
        centre_N = z_NE.mean(axis=1) if scoring.shift_invariant else 0.0
        self.logit_max_T[rows] = np.maximum(highest_N - centre_N, centre_N - lowest_N)
        logs_NE = scoring.log_score(z_NE)
        if logs_NE is not z_NE:
            z_NE -= highest_N[:, None]
            log_sum_N = highest_N + np.log(np.exp(z_NE, out=z_NE).sum(axis=1))
        root_NE, log_total_N = _roots(logs_NE)
        if logs_NE is z_NE:
            log_sum_N = log_total_N + highest_N
        p_NE = root_NE * root_NE
        sequence_N = self.sequence_T[rows]
        starts = np.concatenate([[0], np.flatnonzero(np.diff(sequence_N)) + 1])
        sums_NE = np.add.reduceat(p_NE, starts, axis=0)
        self.probability_SE[np.ix_(sequence_N[starts], self.open_E)] += sums_NE
        # `_roots` has left ln s − max ln s in logs_NE
        entropy_N = log_total_N - np.einsum("ne,ne->n", p_NE, logs_NE)
        gap_NE = np.subtract(root_NE, 1.0 / math.sqrt(self.choices), out=p_NE)
        chord_N = np.einsum("ne,ne->n", gap_NE, gap_NE)
        self.values["fsi"][rows] = distance_from_squared_chord(chord_N) / self.furthest
        self.values["entropy_token"][rows] = entropy_N / self.log_experts
        self.values["logit_z"][rows] = log_sum_N**2

    def _measure_selection(
        self, rule: SelectionRule, rows: slice | np.ndarray, logits_NE: np.ndarray
    ) -> None:
        """Margins and near-ties of the tokens with K selected experts."""
        selected_NK = self.selected_TK[rows]
        full_N = (selected_NK >= 0).all(axis=1)
        if isinstance(rows, slice):
            rows = np.arange(rows.start, rows.stop)
        if not full_N.all():
            rows, logits_NE, selected_NK = rows[full_N], logits_NE[full_N], selected_NK[full_N]
        if not len(rows):
            return
        if self.masked and not rule.groups:
            selected_NK = np.searchsorted(self.open_E, selected_NK)
        check = check_selection(rule, logits_NE, selected_NK)
        self.contradicted += int(check.contradicted_N.sum())
        open_N = np.isfinite(check.margin_N)  # something eligible was left unselected
        self.values["margin"][rows] = np.where(open_N, check.margin_N, 0.0)
        self.counted["margin"][rows] = open_N
        self.values["near_ties"][rows] = check.near_tie_N
        self.counted["near_ties"][rows] = True
        if check.near_tie_centred_N is not None and not (self.masked and rule.groups):
            self.values["near_ties_centred"][rows] = check.near_tie_centred_N
            self.counted["near_ties_centred"][rows] = True

    def _measure_dispatch(self) -> tuple[np.ndarray, np.ndarray]:
        """Dispatch counts and combine weights by sequence and expert, both (S, E)."""
        shape = (self.sequences, self.experts)
        taken_TK = (self.selected_TK >= 0) & self.finite_T[:, None]
        cells_TK = self.sequence_T[:, None] * self.experts + self.selected_TK
        size = self.sequences * self.experts
        dispatch_SE = np.bincount(cells_TK[taken_TK], minlength=size).reshape(shape)
        if self.choices < 2:
            return dispatch_SE.astype(np.int32), np.zeros(shape)
        weights_TK = np.where(taken_TK, self.weights_TK, 0.0).astype(np.float64)
        np.maximum(weights_TK, 0.0, out=weights_TK)
        totals_T = weights_TK.sum(axis=1)
        mixed_T = totals_T > 0
        weights_TK /= np.where(mixed_T, totals_T, 1.0)[:, None]
        combine_SE = np.bincount(
            cells_TK[taken_TK], weights=weights_TK[taken_TK], minlength=size
        ).reshape(shape)
        # An empty slot has weight 0, like an expert that was not selected.
        gap_TK = np.sqrt(weights_TK) - 1.0 / math.sqrt(self.choices)
        rest = (self.choices - weights_TK.shape[1]) / self.choices
        chord_T = np.einsum("tk,tk->t", gap_TK, gap_TK) + rest
        self.values["fsi_dispatch"] = np.where(
            mixed_T, distance_from_squared_chord(chord_T) / self.furthest, 0.0
        )
        self.values["entropy_dispatch"] = entropy(weights_TK) / self.log_experts
        self.counted["fsi_dispatch"] = self.counted["entropy_dispatch"] = mixed_T
        return dispatch_SE.astype(np.int32), combine_SE


def _roots(logs_NE: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """√p and ln Σ exp(ln s − max ln s); changes `logs_NE` in place to ln s − max ln s."""
    logs_NE -= logs_NE.max(axis=1, keepdims=True)
    root_NE = np.multiply(logs_NE, 0.5)
    np.exp(root_NE, out=root_NE)
    total_N = np.einsum("ne,ne->n", root_NE, root_NE)
    root_NE /= np.sqrt(total_N)[:, None]
    return root_NE, np.log(total_N)
