"""Recompute the selection of experts from the logits, for margins and near-ties.

A margin is meaningful only if the selection rule is right, so the experts that the rule selects are
compared with those that the model selected, token by token.

Legend: N tokens, E experts, K experts chosen per token, G groups of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.scorings import find_scoring

# A model selects by float32 scores, moegeo by float64: smaller contradictions are rounding errors.
TOLERANCE = 1e-5
# Mean of (spacing of bfloat16 at a value) / value, for values log-uniform between powers of two.
BFLOAT16_SPACING = 0.0056


@dataclass(frozen=True, slots=True)
class SelectionRule:
    """Top-k of the scores, after adding a bias and within the best groups of experts.

    `groups` is (number of groups, number of groups kept). Groups are ranked by `group_score`:
    "top2" (the sum of a group's two best scores) or "max". `bias_on` says whether the bias is added
    to "scores" or "logits". Of equal scores the lower index is chosen.
    """

    top_k: int
    scoring: str
    bias_E: np.ndarray | None = None
    groups: tuple[int, int] | None = None
    group_score: str = "top2"
    bias_on: str = "scores"

    @property
    def in_logits(self) -> bool:
        """Whether the order of the logits decides the selection, so that margins are in logits."""
        sums = self.groups is not None and self.group_score != "max"
        if self.bias_on == "logits":
            return not sums
        return self.bias_E is None and not sums and find_scoring(self.scoring).monotone

    def score(self, logits_NE: np.ndarray) -> np.ndarray:
        """The values that the rule compares: logits, or scores plus bias (softmax: p), (N, E)."""
        if self.bias_on == "logits" and self.bias_E is not None:
            logits_NE = logits_NE.astype(np.float64) + self.bias_E
        if self.in_logits:
            return logits_NE
        logits_NE = logits_NE.astype(np.float64)
        if self.scoring == "softmax":
            scores_NE = probabilities(logits_NE, self.scoring)
        else:
            scores_NE = find_scoring(self.scoring).score(logits_NE)
        if self.bias_E is not None and self.bias_on == "scores":
            scores_NE = scores_NE + self.bias_E
        return scores_NE

    def rank_groups(self, scores_NE: np.ndarray) -> np.ndarray:
        """The scores by which groups are ranked, shape (N, G). Only for a rule with groups."""
        assert self.groups is not None
        scores_NGE = scores_NE.reshape(len(scores_NE), self.groups[0], -1)
        if self.group_score == "max" or scores_NGE.shape[2] == 1:
            ranks_NG: np.ndarray = scores_NGE.max(axis=2)
        else:
            ranks_NG = np.partition(scores_NGE, -2, axis=2)[:, :, -2:].sum(axis=2)
        return ranks_NG

    def keep_groups(self, scores_NE: np.ndarray) -> np.ndarray | None:
        """Which groups a token may choose from, shape (N, G); None without groups."""
        if self.groups is None:
            return None
        return _top_mask(self.rank_groups(scores_NE), self.groups[1])

    def select(self, scores_NE: np.ndarray) -> np.ndarray:
        """The selected experts, shape (N, E), bool."""
        kept_NG = self.keep_groups(scores_NE)
        if kept_NG is not None:
            scores_NE = _forbid(scores_NE.copy(order="F"), kept_NG)
        return _top_mask(scores_NE, self.top_k)


@dataclass(frozen=True, slots=True)
class SelectionCheck:
    """Result of `check_selection` for each token; it explains the fields.

    `near_tie_centred_N` is None if the order of the logits does not decide the selection.
    """

    margin_N: np.ndarray
    near_tie_N: np.ndarray
    near_tie_centred_N: np.ndarray | None
    contradicted_N: np.ndarray


def check_selection(
    rule: SelectionRule, logits_NE: np.ndarray, selected_NK: np.ndarray
) -> SelectionCheck:
    """Compare a rule with the experts that a model selected.

    Args:
        rule: the rule.
        logits_NE: raw router logits, float32, finite.
        selected_NK: the K experts that the model selected, none missing.

    Returns:
        `margin_N`: score of the last selected expert minus that of the best eligible unselected
        one (infinite if every eligible expert is selected). `near_tie_N`: rounding the logits to
        bfloat16 changes the selected set or creates a tie at its boundary. `near_tie_centred_N`:
        the same after subtracting each token's mean logit, which changes no choice before
        rounding. `contradicted_N`: the rule does not select the model's set.
    """
    count, experts = logits_NE.shape
    # In Fortran order for speed (see routing.py).
    logits_NE, selected_NK = np.asfortranarray(logits_NE), np.asfortranarray(selected_NK)
    flat_NK = selected_NK * count + np.arange(count)[:, None]
    scores_NE = rule.score(logits_NE)
    kept_NG = rule.keep_groups(scores_NE)
    margin_N, scale_N = _margins(scores_NE, flat_NK, kept_NG)
    contradicted_N = margin_N < -TOLERANCE * (1.0 + scale_N)
    contradicted_N |= _repeated(selected_NK)
    if kept_NG is not None:
        width = experts // kept_NG.shape[1]
        contradicted_N |= ~np.take_along_axis(kept_NG, selected_NK // width, axis=1).all(axis=1)
    before = _Selected(rule, scores_NE, kept_NG, margin_N, flat_NK, contradicted_N)
    near_tie_N = before.changes_when_rounded(logits_NE)
    centred_N = None
    if rule.in_logits:
        mean_N1 = logits_NE.mean(axis=1, keepdims=True, dtype=np.float64).astype(logits_NE.dtype)
        centred_N = before.changes_when_rounded(np.asfortranarray(logits_NE - mean_N1))
    return SelectionCheck(margin_N, near_tie_N, centred_N, contradicted_N)


@dataclass(frozen=True, slots=True)
class _Selected:
    """The rule's selection from unrounded logits, for comparison with rounded ones."""

    rule: SelectionRule
    scores_NE: np.ndarray
    kept_NG: np.ndarray | None
    margin_N: np.ndarray
    flat_NK: np.ndarray
    contradicted_N: np.ndarray

    def changes_when_rounded(self, logits_NE: np.ndarray) -> np.ndarray:
        """Mask of tokens whose selection changes or is tied with logits rounded to bfloat16."""
        near_tie_N = np.zeros(len(logits_NE), dtype=bool)
        scores_NE = self.rule.score(round_to_bfloat16(logits_NE))
        kept_NG = self.rule.keep_groups(scores_NE)
        margin_N, _ = _margins(scores_NE, self.flat_NK, kept_NG)
        # Positive margins before and after rounding prove that both select the model's set: only
        # the other tokens are selected again.
        doubtful_N = (self.margin_N <= 0) | (margin_N <= 0) | self.contradicted_N
        if self.kept_NG is not None and kept_NG is not None:
            doubtful_N |= (self.kept_NG != kept_NG).any(axis=1)
        rows = np.flatnonzero(doubtful_N)
        if len(rows):
            before, after = (
                self.rule.select(self.scores_NE[rows]),
                self.rule.select(scores_NE[rows]),
            )
            near_tie_N[rows] = (before != after).any(axis=1)
        # An exact tie in bfloat16 is decided by the experts' indices, so it is a near-tie too. This
        # matters most if the logits were bfloat16 from the start: rounding then changes nothing.
        near_tie_N |= (margin_N == 0) & ~self.contradicted_N
        if kept_NG is not None:
            gap_N = _group_gap(self.rule.rank_groups(scores_NE), kept_NG)
            near_tie_N |= (gap_N == 0) & ~self.contradicted_N
        return near_tie_N


def expected_near_ties(experts: int, top_k: int) -> float:
    r"""Expected share of near-ties for independent normal logits of any scale and mean zero.

    The margin is exponential with rate E·φ(t), where t is the normal quantile of 1 − K/E. Two
    values with a gap g round to the same bfloat16 of spacing w with chance 1 − g/w. With
    x = E·φ(t)·w the share is

    .. math:: 1 - (1 - e^{-x}) / x, \qquad w = 0.0056 \, t

    0.0056 is the mean relative spacing of bfloat16. Source: ours; the tests compare it with
    simulation.

    Args:
        experts: E, at least 2.
        top_k: K, under E.

    Returns:
        A share of the tokens.
    """
    quantile = abs(NormalDist().inv_cdf(1.0 - top_k / experts))
    cells = BFLOAT16_SPACING * quantile * experts * NormalDist().pdf(quantile)
    return 1.0 + math.expm1(-cells) / cells if cells > 0.0 else 0.0


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 values rounded to the nearest bfloat16 (ties to even), as float32."""
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits >> np.uint32(16)) & np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded &= np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _margins(
    scores_NE: np.ndarray, flat_NK: np.ndarray, kept_NG: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Last selected minus best unselected score, and the last selected's absolute score."""
    last_N = scores_NE.T.reshape(-1)[flat_NK].min(axis=1).astype(np.float64)
    others_NE = scores_NE.copy(order="F")
    others_NE.T.reshape(-1)[flat_NK] = -np.inf  # a view: the columns lie one after another
    if kept_NG is not None:
        _forbid(others_NE, kept_NG)
    best_N = others_NE.max(axis=1).astype(np.float64)
    return last_N - best_N, np.abs(last_N)


def _group_gap(ranks_NG: np.ndarray, kept_NG: np.ndarray) -> np.ndarray:
    """The lowest rank score of a kept group minus the highest of a group left out."""
    worst_N = np.where(kept_NG, ranks_NG, np.inf).min(axis=1)
    gap_N: np.ndarray = worst_N - np.where(kept_NG, -np.inf, ranks_NG).max(axis=1)
    return gap_N


def _forbid(scores_NE: np.ndarray, kept_NG: np.ndarray) -> np.ndarray:
    """Set the scores of experts outside the kept groups to −inf, in place."""
    count, groups = kept_NG.shape
    scores_NE.reshape(count, groups, -1)[~kept_NG] = -np.inf
    return scores_NE


def _top_mask(scores_NE: np.ndarray, top_k: int) -> np.ndarray:
    """Mask of the `top_k` largest values of each row; of equal values the first."""
    order_NE = np.argsort(-scores_NE, axis=1, kind="stable")
    mask_NE = np.zeros(scores_NE.shape, dtype=bool)
    np.put_along_axis(mask_NE, order_NE[:, :top_k], True, axis=1)
    return mask_NE


def _repeated(selected_NK: np.ndarray) -> np.ndarray:
    """Mask of tokens whose selection has the same expert twice."""
    sorted_NK = np.sort(selected_NK, axis=1)
    return np.asarray((sorted_NK[:, 1:] == sorted_NK[:, :-1]).any(axis=1))
