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

from moegeo_cli.fisher.categorical import Distribution
from moegeo_cli.geometry.selection import SelectionRule
from moegeo_cli.geometry.simplex import distance_max
from moegeo_cli.geometry.sums import TOKEN_MEANS
from moegeo_cli.measuring.batch_selection import check_batch
from moegeo_cli.scorings import find_scoring


@dataclass(frozen=True, slots=True)
class Runs:
    """Which tokens are of one sequence: those of one lie side by side.

    `place_N` is each token's sequence, from 0 up, `lengths_S` how many tokens each has.
    """

    place_N: torch.Tensor
    lengths_S: torch.Tensor

    @classmethod
    def of(cls, lengths_S: np.ndarray, device: torch.device) -> Runs:
        """The runs of sequences of these lengths, one after another."""
        place_N = np.repeat(np.arange(len(lengths_S)), lengths_S)
        return cls(
            torch.from_numpy(place_N).to(device),
            torch.from_numpy(np.ascontiguousarray(lengths_S)).to(device),
        )

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
    """Sums by sequence, named as in `RoutingSums`, and tokens that the rule does not explain."""

    by_sequence: dict[str, torch.Tensor]
    contradicted: int | torch.Tensor


def are_plain(logits_NE: torch.Tensor, selected_NK: torch.Tensor, weights_NK: torch.Tensor) -> bool:
    """Whether every number of a batch is finite and every slot filled."""
    total = logits_NE.sum() + weights_NK.sum()  # not finite as soon as one of them is not
    return bool(torch.isfinite(total) & (selected_NK.amin() >= 0))


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
        scoring: name of the router's scoring.
        rule: the router's selection rule; None if it is not known.
    """
    experts = logits_NE.shape[1]
    even, furthest, log_experts = experts**-0.5, distance_max(experts), math.log(experts)
    wide = found.wide
    zero_N = found.highest_N.new_zeros(len(logits_NE))
    values = dict.fromkeys(TOKEN_MEANS, zero_N)
    counts = dict.fromkeys(TOKEN_MEANS, zero_N)
    every_N = torch.ones_like(zero_N)

    wide_NE = found.buffers.take("wide", logits_NE, wide)
    mean_N = wide_NE.copy_(logits_NE).sum(1).div_(experts)
    p_NE, work_NE = found.probabilities(), found.buffers.take("spare", logits_NE, torch.float32)
    probability_SE = runs.sum(wide_NE.copy_(p_NE))
    torch.mul(p_NE, found.log_NE, out=work_NE)
    values["entropy_token"] = (found.log_total_N - work_NE.sum(1).to(wide)) / log_experts
    torch.sqrt(p_NE, out=work_NE).sub_(even)
    values["fsi"] = _distance(torch.linalg.vector_norm(work_NE, dim=1).to(wide)) / furthest
    if find_scoring(scoring).shift_invariant:  # softmax: ln s is the logit itself
        values["logit_z"] = (found.log_total_N + found.highest_N).square()
        centre_N = mean_N - found.highest_N
        logit_max_N = torch.maximum(-centre_N, centre_N - found.log_NE.amin(1))
    else:
        values["logit_z"] = torch.logsumexp(logits_NE, 1).to(wide).square()
        logit_max_N = torch.maximum(logits_NE.amax(1), -logits_NE.amin(1)).clamp_min(0.0).to(wide)

    shares_NK = weights_NK.to(wide).clamp_min(0.0)
    total_N1 = shares_NK.sum(1, keepdim=True)
    mixed_N = total_N1[:, 0] > 0
    shares_NK = shares_NK / total_N1.where(total_N1 > 0, 1.0)
    rest = (experts - shares_NK.shape[1]) / experts  # of experts that were not selected
    chord_N = (shares_NK.sqrt() - even).square().sum(1).add(rest).sqrt()
    values["fsi_dispatch"] = torch.where(mixed_N, _distance(chord_N) / furthest, 0.0)
    values["entropy_dispatch"] = torch.special.entr(shares_NK).sum(1) / log_experts

    contradicted: int | torch.Tensor = 0
    for name in ("fsi", "entropy_token", "logit_z"):
        counts[name] = every_N
    counts["fsi_dispatch"] = counts["entropy_dispatch"] = mixed_N.to(wide)
    if rule is not None:
        choice = check_batch(rule, logits_NE, mean_N.float(), selected_NK, found.buffers)
        contradicted = choice.contradicted_N.sum()
        open_N = torch.isfinite(choice.margin_N)
        values["margin"] = choice.margin_N.where(open_N, 0.0).to(wide)
        counts["margin"], counts["near_ties"] = open_N.to(wide), every_N
        values["near_ties"] = choice.near_tie_N.to(wide)
        if choice.near_tie_centred_N is not None:
            values["near_ties_centred"] = choice.near_tie_centred_N.to(wide)
            counts["near_ties_centred"] = every_N
    table_NX = torch.stack([*values.values(), *counts.values()], dim=1)
    table_SX = runs.sum(table_NX)
    dispatch_SE, combine_SE = _by_expert(runs, selected_NK, shares_NK, experts)
    by_sequence = {
        "values_SM": table_SX[:, : len(TOKEN_MEANS)],
        "counts_SM": table_SX[:, len(TOKEN_MEANS) :],
        "dispatch_SE": dispatch_SE,
        "probability_SE": probability_SE,
        "combine_SE": combine_SE,
        "logit_max_S": runs.largest(logit_max_N),
    }
    return BatchSums(by_sequence, contradicted)


def _distance(chord_N: torch.Tensor) -> torch.Tensor:
    """See `geometry.simplex.distance_from_squared_chord`; of the chord's length."""
    return torch.asin((0.5 * chord_N).clamp_max(1.0)).mul_(4.0)


def _by_expert(
    runs: Runs, selected_NK: torch.Tensor, shares_NK: torch.Tensor, experts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Slots and shares by sequence and expert, added up in the same order every time."""
    if selected_NK.device.type == "cpu":
        cells = (runs.place_N[:, None] * experts + selected_NK).reshape(-1)
        size, shape = len(runs.lengths_S) * experts, (len(runs.lengths_S), experts)
        slots = torch.bincount(cells, minlength=size)
        shares = torch.bincount(cells, weights=shares_NK.reshape(-1), minlength=size)
        return slots.reshape(shape), shares.reshape(shape)
    slots_NE = shares_NK.new_zeros(len(selected_NK), experts)
    shares_NE = slots_NE.clone()
    for slot in range(selected_NK.shape[1]):  # one by one: a token may name an expert twice
        expert_N1, share_N1 = selected_NK[:, slot, None], shares_NK[:, slot, None]
        slots_NE.scatter_add_(1, expert_N1, torch.ones_like(share_N1))
        shares_NE.scatter_add_(1, expert_N1, share_N1)
    return runs.sum(slots_NE), runs.sum(shares_NE)
