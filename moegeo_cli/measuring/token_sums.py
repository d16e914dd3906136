r"""A batch's tokens as sums by sequence, in few passes over the logits, on their own device.

The sums are those of `geometry.routing.sum_tokens`, which stays the reference, and which takes
batches with a token that is not finite or with an empty slot.

Legend: N tokens of a batch, S sequences of the batch, E experts, K experts chosen per token,
M token means, X columns of any kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.fisher.buffers import Buffers
from moegeo_cli.fisher.categorical import Distribution
from moegeo_cli.geometry.selection import TOLERANCE, SelectionRule, check_selection
from moegeo_cli.geometry.simplex import distance_max
from moegeo_cli.geometry.sums import TOKEN_MEANS, RouterTokens
from moegeo_cli.scorings import find_scoring


@dataclass(frozen=True, slots=True)
class Runs:
    """Which tokens are of one sequence: those of one lie side by side.

    `place_N` is each token's sequence, from 0 up, `lengths_S` how many tokens each has.
    """

    place_N: torch.Tensor
    lengths_S: torch.Tensor

    def sum(self, values_NX: torch.Tensor) -> torch.Tensor:
        """Sums by sequence, added up in the same order every time."""
        if values_NX.device.type == "cpu":
            sums_SX = values_NX.new_zeros(len(self.lengths_S), *values_NX.shape[1:])
            return sums_SX.index_add_(0, self.place_N, values_NX)
        return torch.segment_reduce(values_NX, "sum", lengths=self.lengths_S, axis=0, unsafe=True)

    def largest(self, values_N: torch.Tensor) -> torch.Tensor:
        """The largest by sequence, of values that are not negative."""
        largest_S = values_N.new_zeros(len(self.lengths_S))
        return largest_S.scatter_reduce_(0, self.place_N, values_N, "amax")


@dataclass(frozen=True, slots=True)
class BatchSums:
    """Sums by sequence as `RoutingSums` has them, and tokens that the rule does not explain."""

    values_SM: np.ndarray
    counts_SM: np.ndarray
    dispatch_SE: np.ndarray
    probability_SE: np.ndarray
    combine_SE: np.ndarray
    logit_max_S: np.ndarray
    contradicted: int


def are_plain(logits_NE: torch.Tensor, selected_NK: torch.Tensor, weights_NK: torch.Tensor) -> bool:
    """Whether every number of a batch is finite and every slot filled."""
    total = logits_NE.sum() + weights_NK.sum()  # not finite as soon as one of them is not
    return bool(torch.isfinite(total) & (selected_NK.amin() >= 0))


def make_rule(facts: RouterTokens, slots: int) -> SelectionRule | None:
    """The selection rule of a router without masked experts; None where none can be held to.

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


def sum_batch(
    runs: Runs,
    logits_NE: torch.Tensor,
    selected_NK: torch.Tensor,
    weights_NK: torch.Tensor,
    found: Distribution,
    scoring: str,
    rule: SelectionRule | None,
) -> BatchSums:
    """Sums over the tokens of some whole sequences, of two experts or more.

    Args:
        runs: the tokens' sequences.
        logits_NE: raw logits, float32, finite.
        selected_NK: chosen experts, no slot empty.
        weights_NK: combine weights, float32, finite.
        found: the distributions of these logits.
        scoring: of the router.
        rule: how it selects; None where no rule can be held against it.
    """
    experts = logits_NE.shape[1]
    even, furthest, log_experts = experts**-0.5, distance_max(experts), math.log(experts)
    wide = found.wide
    zero_N = found.highest_N.new_zeros(len(logits_NE))
    values = dict.fromkeys(TOKEN_MEANS, zero_N)
    counts = dict.fromkeys(TOKEN_MEANS, zero_N)
    every_N = torch.ones_like(zero_N)

    gap_NE = torch.sub(found.root_NE, even, out=found.buffers.take("spare", logits_NE, wide))
    values["fsi"] = _distance(torch.linalg.vector_norm(gap_NE, dim=1)) / furthest
    torch.mul(found.p_NE, found.log_NE, out=gap_NE)
    values["entropy_token"] = (found.log_total_N - gap_NE.sum(1)) / log_experts
    if find_scoring(scoring).shift_invariant:  # softmax: ln s is the logit itself
        values["logit_z"] = (found.log_total_N + found.highest_N).square()
        centre_N = found.log_NE.mean(1)
        logit_max_N = torch.maximum(-centre_N, centre_N - found.log_NE.amin(1))
    else:
        values["logit_z"] = torch.logsumexp(logits_NE.to(wide), 1).square()
        logit_max_N = torch.maximum(logits_NE.amax(1), -logits_NE.amin(1)).clamp_min(0.0).to(wide)

    shares_NK = weights_NK.to(wide).clamp_min(0.0)
    total_N1 = shares_NK.sum(1, keepdim=True)
    mixed_N = total_N1[:, 0] > 0
    shares_NK = shares_NK / total_N1.where(total_N1 > 0, 1.0)
    rest = (experts - shares_NK.shape[1]) / experts  # of experts that were not selected
    chord_N = (shares_NK.sqrt() - even).square().sum(1).add(rest).sqrt()
    values["fsi_dispatch"] = torch.where(mixed_N, _distance(chord_N) / furthest, 0.0)
    values["entropy_dispatch"] = torch.special.entr(shares_NK).sum(1) / log_experts

    contradicted = 0
    for name in ("fsi", "entropy_token", "logit_z"):
        counts[name] = every_N
    counts["fsi_dispatch"] = counts["entropy_dispatch"] = mixed_N.to(wide)
    if rule is not None:
        choice = _check(rule, logits_NE, selected_NK, found.buffers)
        contradicted = int(choice.contradicted_N.sum())
        open_N = torch.isfinite(choice.margin_N)
        values["margin"] = choice.margin_N.where(open_N, 0.0).to(wide)
        counts["margin"], counts["near_ties"] = open_N.to(wide), every_N
        values["near_ties"] = choice.near_tie_N.to(wide)
        if choice.near_tie_centred_N is not None:
            values["near_ties_centred"] = choice.near_tie_centred_N.to(wide)
            counts["near_ties_centred"] = every_N
    table_NX = torch.stack([*values.values(), *counts.values()], dim=1)
    table_SX = runs.sum(table_NX).double().cpu().numpy()
    dispatch_SE, combine_SE = _by_expert(runs, selected_NK, shares_NK, experts)
    return BatchSums(
        values_SM=table_SX[:, : len(TOKEN_MEANS)],
        counts_SM=table_SX[:, len(TOKEN_MEANS) :],
        dispatch_SE=dispatch_SE,
        probability_SE=runs.sum(found.p_NE).double().cpu().numpy(),
        combine_SE=combine_SE,
        logit_max_S=runs.largest(logit_max_N).double().cpu().numpy(),
        contradicted=contradicted,
    )


def _distance(chord_N: torch.Tensor) -> torch.Tensor:
    """See `geometry.simplex.distance_from_squared_chord`; of the chord's length."""
    return torch.asin((0.5 * chord_N).clamp_max(1.0)).mul_(4.0)


def _by_expert(
    runs: Runs, selected_NK: torch.Tensor, shares_NK: torch.Tensor, experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Slots and shares by sequence and expert; on the CPU, where adding up has one order."""
    cells_NK = (runs.place_N[:, None] * experts + selected_NK).cpu().reshape(-1)
    size, shape = len(runs.lengths_S) * experts, (len(runs.lengths_S), experts)
    slots = torch.bincount(cells_NK, minlength=size)
    shares = torch.bincount(cells_NK, weights=shares_NK.cpu().reshape(-1), minlength=size)
    return slots.reshape(shape).numpy(), shares.double().reshape(shape).numpy()


@dataclass(frozen=True, slots=True)
class _Choice:
    """See `geometry.selection.SelectionCheck`."""

    margin_N: torch.Tensor
    near_tie_N: torch.Tensor
    near_tie_centred_N: torch.Tensor | None
    contradicted_N: torch.Tensor


def _check(
    rule: SelectionRule, logits_NE: torch.Tensor, selected_NK: torch.Tensor, buffers: Buffers
) -> _Choice:
    """A rule against what was selected.

    A gap behind the selected experts before rounding says that the rule selects just them. After
    rounding it is smaller, or gone: then the token is a near-tie. Tokens without such a gap are
    looked at one by one by the reference; so are all tokens of a rule with groups of experts.
    """
    wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
    if rule.groups is not None:
        doubtful_N = torch.ones(len(logits_NE), dtype=torch.bool, device=logits_NE.device)
        zero_N = logits_NE.new_zeros(len(logits_NE), dtype=wide)
        choice = _Choice(
            zero_N, doubtful_N.clone(), doubtful_N.clone() if rule.in_logits else None,
            doubtful_N.clone(),
        )  # fmt: skip
        return _looked_at(choice, doubtful_N, rule, logits_NE, selected_NK)
    half_NE = buffers.take("half", logits_NE, torch.bfloat16)
    rounded_NE = buffers.take("rounded", logits_NE, torch.float32)
    own_NE = buffers.take("own", logits_NE, torch.float32)
    margin_N, last_N = _margin(rule, own_NE.copy_(logits_NE), selected_NK)
    rounded_NE.copy_(half_NE.copy_(logits_NE))
    rounded_N, _ = _margin(rule, rounded_NE, selected_NK)
    ordered_NK = selected_NK.sort(1).values
    doubtful_N = (ordered_NK[:, 1:] == ordered_NK[:, :-1]).any(1)
    doubtful_N |= (margin_N <= 0) | (rounded_N < 0)
    centred_N = None
    if rule.in_logits:
        mean_N1 = logits_NE.mean(1, keepdim=True, dtype=wide).float()
        rounded_NE.copy_(half_NE.copy_(torch.sub(logits_NE, mean_N1, out=own_NE)))
        gap_N, _ = _margin(rule, rounded_NE, selected_NK)
        centred_N = gap_N == 0
        doubtful_N |= gap_N < 0
    contradicted_N = margin_N < -TOLERANCE * (1.0 + last_N.abs())
    choice = _Choice(margin_N, rounded_N == 0, centred_N, contradicted_N)
    return _looked_at(choice, doubtful_N, rule, logits_NE, selected_NK)


def _margin(
    rule: SelectionRule, logits_NE: torch.Tensor, selected_NK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last selected score less the best other one, and the last one; overwrites the logits."""
    scores_NE = _scores(rule, logits_NE)
    wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
    last_N = scores_NE.gather(1, selected_NK).amin(1).to(wide)
    best_N = scores_NE.scatter_(1, selected_NK, -math.inf).amax(1).to(wide)
    return last_N - best_N, last_N


def _scores(rule: SelectionRule, logits_NE: torch.Tensor) -> torch.Tensor:
    """See `SelectionRule.score`."""
    wide = torch.float32 if logits_NE.device.type == "mps" else torch.float64
    bias = rule.bias_E
    bias_E = None if bias is None else torch.from_numpy(bias).to(logits_NE.device, wide)
    if rule.bias_on == "logits" and bias_E is not None:
        logits_NE = logits_NE.to(wide) + bias_E
    if rule.in_logits:
        return logits_NE
    scores_NE = find_scoring(rule.scoring).tensor_score(logits_NE.to(wide))
    return scores_NE + bias_E if bias_E is not None and rule.bias_on == "scores" else scores_NE


def _looked_at(
    choice: _Choice,
    doubtful_N: torch.Tensor,
    rule: SelectionRule,
    logits_NE: torch.Tensor,
    selected_NK: torch.Tensor,
) -> _Choice:
    """The same with doubtful tokens as the reference sees them."""
    rows = doubtful_N.nonzero()[:, 0]
    if not len(rows):
        return choice
    own = check_selection(rule, logits_NE[rows].cpu().numpy(), selected_NK[rows].cpu().numpy())
    pairs = (
        (choice.margin_N, own.margin_N),
        (choice.near_tie_N, own.near_tie_N),
        (choice.near_tie_centred_N, own.near_tie_centred_N),
        (choice.contradicted_N, own.contradicted_N),
    )
    for whole_N, some in pairs:
        if whole_N is not None and some is not None:
            whole_N[rows] = torch.from_numpy(some).to(whole_N.device, whole_N.dtype)
    return choice
