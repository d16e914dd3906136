r"""Margins and near-ties of a batch's tokens, on the device of the logits.

`geometry.selection.check_selection` is the reference. Most tokens are decided here from the two
scores at the edge of the selection; the reference decides the others one by one.

Legend: N tokens of a batch, E experts, K experts chosen per token, G groups of experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.fisher.buffers import Buffers
from moegeo_cli.geometry.selection import SelectionRule, check_selection
from moegeo_cli.geometry.sums import RouterTokens
from moegeo_cli.scorings import find_scoring

# Scores in float32 differ from the reference's by less than this share of 1 + |score|.
BAND = 2e-6


def make_rule(facts: RouterTokens, slots: int) -> SelectionRule | None:
    """The selection rule of a router without masked experts; None if it has none to check.

    Args:
        facts: the router.
        slots: experts that a token chooses.
    """
    if not facts.top_k or facts.top_k != slots or facts.top_k >= int(facts.experts or 0):
        return None
    bias_E = facts.selection_bias_E
    return SelectionRule(
        facts.top_k,
        facts.scoring,
        None if bias_E is None else np.asarray(bias_E, float),
        facts.groups,
        facts.group_score,
        facts.bias_on,
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """Tensors as `geometry.selection.SelectionCheck` has them, each of shape (N,)."""

    margin_N: torch.Tensor
    near_tie_N: torch.Tensor
    near_tie_centred_N: torch.Tensor | None
    contradicted_N: torch.Tensor


@dataclass(frozen=True, slots=True)
class _Edge:
    """The scores at the edge of a token's selection.

    `last_N` is the smallest selected score, `best_N` the largest other one that may be selected.
    With groups of experts, `kept_NG` are those that a token may choose from, `rank_gap_N` is how
    far the last kept group ranks above the best other one, and `outside_N` says that a selected
    expert lies in a group that is not kept.
    """

    last_N: torch.Tensor
    best_N: torch.Tensor
    kept_NG: torch.Tensor | None = None
    rank_gap_N: torch.Tensor | None = None
    outside_N: torch.Tensor | None = None


def check_batch(
    rule: SelectionRule,
    logits_NE: torch.Tensor,
    mean_N: torch.Tensor,
    selected_NK: torch.Tensor,
    buffers: Buffers,
) -> Selection:
    """Compare a rule with the selected experts.

    A positive margin before rounding proves that the rule selects just the model's experts.

    Args:
        rule: the rule.
        logits_NE: raw logits, float32, finite.
        mean_N: each token's mean logit, rounded to float32.
        selected_NK: the selected experts, no slot empty.
        buffers: memory to compute in.
    """
    wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
    edge = _find_edge(rule, logits_NE, selected_NK, buffers)
    margin_N = edge.last_N.to(wide) - edge.best_N.to(wide)
    band_N = torch.zeros_like(margin_N) if _is_exact(rule) else BAND * (1.0 + edge.last_N.abs())
    ordered_NK = selected_NK.sort(1).values
    doubtful_N = (ordered_NK[:, 1:] == ordered_NK[:, :-1]).any(1)
    doubtful_N |= margin_N <= band_N
    if edge.rank_gap_N is not None and edge.outside_N is not None:
        doubtful_N |= (edge.rank_gap_N <= band_N) | edge.outside_N
    near_N = _changes_when_rounded(rule, logits_NE, selected_NK, buffers, edge, band_N, doubtful_N)
    centred_N = None
    if rule.in_logits:
        centred_N = _changes_when_rounded(
            rule, logits_NE, selected_NK, buffers, edge, band_N, doubtful_N, mean_N
        )
    found = Selection(margin_N, near_N, centred_N, torch.zeros_like(near_N))
    return _ask_reference(found, doubtful_N, rule, logits_NE, selected_NK)


def _is_exact(rule: SelectionRule) -> bool:
    """Whether the rule compares the logits themselves, which nothing rounds."""
    return rule.in_logits and rule.bias_E is None


def _find_edge(
    rule: SelectionRule, logits_NE: torch.Tensor, selected_NK: torch.Tensor, buffers: Buffers
) -> _Edge:
    """The scores at the edge of each token's selection, float32."""
    scores_NE = _scores(rule, logits_NE)
    last_N = scores_NE.gather(1, selected_NK).amin(1)
    others_NE = buffers.take("spare", scores_NE, torch.float32).copy_(scores_NE)
    others_NE.scatter_(1, selected_NK, -math.inf)
    if rule.groups is None:
        return _Edge(last_N, others_NE.amax(1))
    count, kept = rule.groups
    shape = (len(scores_NE), count, scores_NE.shape[1] // count)
    scores_NGE = scores_NE.view(shape)
    if rule.group_score == "max" or shape[2] == 1:
        ranks_NG = scores_NGE.amax(2)
    else:
        ranks_NG = _two_best(scores_NGE)
    order_NG = ranks_NG.sort(1, descending=True).values
    kept_NG = ranks_NG >= order_NG[:, kept - 1 : kept]
    gap_N = order_NG[:, kept - 1] - order_NG[:, kept] if kept < count else last_N.new_ones(())
    outside_N = ~kept_NG.gather(1, selected_NK // shape[2]).all(1)
    best_NG = others_NE.view(shape).amax(2).where(kept_NG, -math.inf)
    return _Edge(last_N, best_NG.amax(1), kept_NG, gap_N.expand_as(last_N), outside_N)


def _two_best(scores_NGE: torch.Tensor) -> torch.Tensor:
    """The sum of each group's two best scores, shape (N, G); by halves, as in a tournament."""
    width = 1 << (scores_NGE.shape[2] - 1).bit_length()
    padded = torch.nn.functional.pad(scores_NGE, (0, width - scores_NGE.shape[2]), value=-math.inf)
    one, other = padded.chunk(2, dim=2)
    best, second = torch.maximum(one, other), torch.minimum(one, other)
    while best.shape[2] > 1:
        (one, other), rest = best.chunk(2, dim=2), second.chunk(2, dim=2)
        best = torch.maximum(one, other)
        second = torch.maximum(torch.minimum(one, other), torch.maximum(*rest))
    return (best + second)[:, :, 0]


def _changes_when_rounded(
    rule: SelectionRule,
    logits_NE: torch.Tensor,
    selected_NK: torch.Tensor,
    buffers: Buffers,
    edge: _Edge,
    band_N: torch.Tensor,
    doubtful_N: torch.Tensor,
    offset_N: torch.Tensor | None = None,
) -> torch.Tensor:
    """Tokens whose selection changes, or ties, once the logits are rounded to bfloat16.

    Args:
        rule: the rule.
        logits_NE: the logits.
        selected_NK: the selected experts.
        buffers: memory to compute in.
        edge: what `_find_edge` gives for the logits.
        band_N: gaps up to this size may be rounding of the scores.
        doubtful_N: gets the tokens that are not decided here.
        offset_N: what is taken off each token's logits before rounding.
    """
    if _is_exact(rule) and rule.groups is None:  # rounding keeps the order: the edge stays the edge
        ends = edge.last_N, edge.best_N
        if offset_N is not None:
            ends = ends[0] - offset_N, ends[1] - offset_N
        return ends[0].bfloat16() <= ends[1].bfloat16()
    if offset_N is not None:
        logits_NE = logits_NE - offset_N[:, None]
    after = _find_edge(rule, logits_NE.bfloat16().float(), selected_NK, buffers)
    margin_N = after.last_N - after.best_N
    doubtful_N |= margin_N.abs() <= band_N
    if after.rank_gap_N is not None and after.kept_NG is not None and edge.kept_NG is not None:
        doubtful_N |= (after.rank_gap_N <= band_N) | (after.kept_NG != edge.kept_NG).any(1)
    return margin_N < 0


def _scores(rule: SelectionRule, logits_NE: torch.Tensor) -> torch.Tensor:
    """See `SelectionRule.score`; float32."""
    bias = rule.bias_E
    bias_E = None if bias is None else torch.from_numpy(bias).to(logits_NE.device, torch.float32)
    if rule.bias_on == "logits" and bias_E is not None:
        logits_NE = logits_NE + bias_E
    if rule.in_logits:
        return logits_NE
    scores_NE = find_scoring(rule.scoring).tensor_score(logits_NE)
    if bias_E is not None and rule.bias_on == "scores":
        scores_NE.add_(bias_E)
    return scores_NE


def _ask_reference(
    found: Selection,
    doubtful_N: torch.Tensor,
    rule: SelectionRule,
    logits_NE: torch.Tensor,
    selected_NK: torch.Tensor,
) -> Selection:
    """Replace the results of doubtful tokens by those of `check_selection`, in place."""
    rows = doubtful_N.nonzero()[:, 0]
    if not len(rows):
        return found
    own = check_selection(rule, logits_NE[rows].cpu().numpy(), selected_NK[rows].cpu().numpy())
    pairs = (
        (found.margin_N, own.margin_N),
        (found.near_tie_N, own.near_tie_N),
        (found.near_tie_centred_N, own.near_tie_centred_N),
        (found.contradicted_N, own.contradicted_N),
    )
    for whole_N, some in pairs:
        if whole_N is not None and some is not None:
            whole_N[rows] = torch.from_numpy(some).to(whole_N.device, whole_N.dtype)
    return found
