"""A router's sums, fed batch by batch while the probe is replayed.

Memory does not grow with the number of tokens: a batch's tokens are added to sums by sequence. A
fixed sample of the tokens themselves is kept by the pass (`Plan.kept_rows`).

Legend: N tokens of a batch, S sequences of the probe, E experts, K experts chosen per token,
M token means.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.fisher.categorical import Distribution
from moegeo_cli.geometry.masked import find_masked
from moegeo_cli.geometry.routing import sum_tokens
from moegeo_cli.geometry.sums import TOKEN_MEANS, RouterTokens, RoutingSums
from moegeo_cli.measuring.batch_selection import make_rule
from moegeo_cli.measuring.token_sums import Runs, are_plain, sum_batch
from moegeo_cli.routers.finding import Router

# Arrays of sums by sequence, as `RoutingSums` names them.
ADDED = (
    "values_SM", "counts_SM", "sequence_tokens", "dispatch_SE", "probability_SE", "combine_SE",
    "logit_max_S", "nonfinite_S",
)  # fmt: skip


def describe_router(router: Router, architecture: Architecture) -> RouterTokens:
    """What is known of a router's choice, without a token."""
    selection, bias = architecture.selection, router.selection_bias_E
    return RouterTokens(
        logits_TE=None,
        selected_TK=np.zeros((0, 0), dtype=np.int32),
        weights_TK=np.zeros((0, 0), dtype=np.float32),
        sequence_T=np.zeros(0, dtype=np.int64),
        scoring=architecture.scoring or "",
        selection_bias_E=None if bias is None else copied(bias),
        bias_on=selection.bias_on,
        groups=selection.groups,
        group_score=selection.group_score or "top2",
        top_k=router.top_k or architecture.top_k,
        experts=router.experts,
    )


def masked_experts(router: Router) -> tuple[int, ...]:
    """Experts that a router's weights switch off."""
    biases = (None if b is None else copied(b) for b in (router.bias_E, router.selection_bias_E))
    return find_masked(copied(router.weight_ED[: router.experts]), *biases)


def make_statistic(
    router: Router, architecture: Architecture, sequences: int
) -> RoutingStatistic | None:
    """The sums of one router; None for one whose tokens are all needed at the end.

    These are routers that hash, and those that switch experts off: whether an expert is off is
    known when no token has reached it.
    """
    if router.layer in architecture.hash_layers or masked_experts(router):
        return None
    return RoutingStatistic(
        describe_router(router, architecture), sequences, router.weight_ED.device
    )


def copied(values: torch.Tensor) -> np.ndarray:
    """A copy of a parameter as a float32 array.

    A view would change when the model is filled with the next checkpoint, and would keep the
    parameter's memory-mapped file open.
    """
    return np.array(values.detach().float().cpu().numpy())


class RoutingStatistic:
    """Sums over the tokens of each sequence. Every sequence lies whole in one batch.

    Args:
        facts: the router without a token (`describe_router`).
        sequences: S.
        device: where the sums live; None for the CPU.
    """

    def __init__(
        self, facts: RouterTokens, sequences: int, device: torch.device | None = None
    ) -> None:
        self._facts, experts = facts, int(facts.experts or 0)
        shapes = {
            "values_SM": len(TOKEN_MEANS), "counts_SM": len(TOKEN_MEANS), "dispatch_SE": experts,
            "probability_SE": experts, "combine_SE": experts,
        }  # fmt: skip
        device = device or torch.device("cpu")
        wide = torch.float32 if device.type == "mps" else torch.float64

        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(shape, dtype=wide, device=device)

        self._sums = {
            name: zeros(sequences, shapes[name]) if name in shapes else zeros(sequences)
            for name in ADDED
        }
        # tokens that the selection rule does not explain; batches without a rule; with a margin in
        # logits
        self._counted = zeros(3)

    def add(
        self,
        spans: Sequence[tuple[int, int, int]],
        logits_NE: torch.Tensor,
        selected_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        found: Distribution | None = None,
    ) -> None:
        """Add the tokens of some whole sequences.

        Args:
            spans: (sequence, first row, row after the last) of each sequence, in order of rows.
            logits_NE: raw logits, float32.
            selected_NK: chosen experts, −1 for an empty slot.
            weights_NK: combine weights, float32.
            found: the distributions of these logits, where they are at hand.
        """
        if not spans:
            return
        own_S, lengths_S = np.array([(key, stop - start) for key, start, stop in spans]).T
        if logits_NE.shape[1] > 1 and are_plain(logits_NE, selected_NK, weights_NK):
            self._add_plain(own_S, lengths_S, logits_NE, selected_NK, weights_NK, found)
            return
        sums = sum_tokens(
            dataclasses.replace(
                self._facts,
                logits_TE=logits_NE.cpu().numpy(),
                selected_TK=selected_NK.cpu().numpy(),
                weights_TK=weights_NK.cpu().numpy(),
                sequence_T=np.repeat(np.arange(len(own_S)), lengths_S),
                sequences=len(own_S),
            )
        )
        self._add_up(own_S, {n: torch.from_numpy(getattr(sums, n)) for n in ADDED})
        self._count(sums.contradicted, in_logits=sums.margin_in_logits)

    def _add_plain(
        self,
        own_S: np.ndarray,
        lengths_S: np.ndarray,
        logits_NE: torch.Tensor,
        selected_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        found: Distribution | None,
    ) -> None:
        """The same where all tokens can be summed where they are."""
        runs = Runs.of(lengths_S, logits_NE.device)
        rule = make_rule(self._facts, selected_NK.shape[1])
        found = found or Distribution(logits_NE, self._facts.scoring)
        sums = sum_batch(
            runs, logits_NE, selected_NK.long(), weights_NK, found, self._facts.scoring, rule
        )
        self._add_up(own_S, {**sums.by_sequence, "sequence_tokens": runs.lengths_S})
        self._count(
            -1 if rule is None else sums.contradicted,
            in_logits=rule is not None and rule.in_logits,
        )

    def _add_up(self, own_S: np.ndarray, sums: Mapping[str, torch.Tensor]) -> None:
        """Add sums of these sequences, each of which is there once."""
        own = torch.from_numpy(np.ascontiguousarray(own_S)).to(self._counted.device)
        for name, values in sums.items():
            self._sums[name].index_add_(0, own, values.to(self._counted))

    def _count(self, contradicted: int | torch.Tensor, *, in_logits: bool) -> None:
        """Count the tokens that contradict the selection rule; −1 if the batch has no rule."""
        if isinstance(contradicted, int) and contradicted < 0:
            self._counted[1] += 1
        else:
            self._counted[0] += contradicted
            self._counted[2] += in_logits

    def parts(self) -> list[torch.Tensor]:
        """The sums themselves, so that those of other ranks can be added to them."""
        return [*self._sums.values(), self._counted]

    def finish(self) -> RoutingSums:
        """The sums of all batches, without the dispersion."""
        kinds: dict[str, type] = {"dispatch_SE": np.int32, "sequence_tokens": np.int64}
        sums: dict[str, Any] = {
            name: values.cpu().numpy().astype(kinds.get(name, np.float64))
            for name, values in self._sums.items()
        }
        contradicted, without_rule, in_logits = self._counted.tolist()
        return RoutingSums(
            **sums,
            top_k=self._facts.top_k or 0,
            contradicted=-1 if without_rule else int(contradicted),
            margin_in_logits=bool(in_logits),
        )
