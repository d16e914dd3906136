"""A router's sums, fed batch by batch while the probe is replayed.

What grows with the number of tokens is never held: a batch's tokens become sums by sequence, and
of the tokens themselves a fixed sample is kept elsewhere (`Plan.kept_rows`).

Legend: N tokens of a batch, S sequences of the probe, E experts, K experts chosen per token,
M token means.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.fisher.categorical import Distribution
from moegeo_cli.geometry.masked import find_masked
from moegeo_cli.geometry.routing import sum_tokens
from moegeo_cli.geometry.sums import TOKEN_MEANS, RouterTokens, RoutingSums
from moegeo_cli.measuring.token_sums import Runs, are_plain, make_rule, sum_batch
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
    return RoutingStatistic(describe_router(router, architecture), sequences)


def copied(values: torch.Tensor) -> np.ndarray:
    """A parameter as an array of its own.

    A view would become the next checkpoint's where a model is filled in place, and hold the
    mapped file that the parameter lies in.
    """
    return np.array(values.detach().float().cpu().numpy())


class RoutingStatistic:
    """Sums over the tokens of each sequence. Every sequence lies whole in one batch.

    Args:
        facts: the router without a token (`describe_router`).
        sequences: S.
    """

    def __init__(self, facts: RouterTokens, sequences: int) -> None:
        self._facts, experts = facts, int(facts.experts or 0)
        shapes = {
            "values_SM": len(TOKEN_MEANS), "counts_SM": len(TOKEN_MEANS), "dispatch_SE": experts,
            "probability_SE": experts, "combine_SE": experts,
        }  # fmt: skip
        self._sums = {
            name: np.zeros((sequences, shapes[name]) if name in shapes else sequences)
            for name in ADDED
        }
        # tokens whose choice the rule does not explain; batches that no rule could be held against
        self._contradicted = np.zeros(2)
        self._in_logits = np.zeros(1)

    def add(
        self,
        sequence_N: np.ndarray,
        logits_NE: torch.Tensor,
        selected_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        found: Distribution | None = None,
    ) -> None:
        """Add the tokens of some whole sequences.

        Args:
            sequence_N: each token's sequence; those of one lie side by side.
            logits_NE: raw logits, float32.
            selected_NK: chosen experts, −1 for an empty slot.
            weights_NK: combine weights, float32.
            found: the distributions of these logits, where they are at hand.
        """
        if not len(sequence_N):
            return
        first_N = np.concatenate([[True], np.diff(sequence_N) != 0])
        own_S = sequence_N[first_N]
        if logits_NE.shape[1] > 1 and are_plain(logits_NE, selected_NK, weights_NK):
            self._add_plain(first_N, own_S, logits_NE, selected_NK, weights_NK, found)
            return
        sums = sum_tokens(
            dataclasses.replace(
                self._facts,
                logits_TE=logits_NE.cpu().numpy(),
                selected_TK=selected_NK.cpu().numpy(),
                weights_TK=weights_NK.cpu().numpy(),
                sequence_T=np.cumsum(first_N) - 1,
                sequences=len(own_S),
            )
        )
        for name, whole in self._sums.items():
            whole[own_S] += getattr(sums, name)
        self._count_contradicted(sums.contradicted, in_logits=sums.margin_in_logits)

    def _add_plain(
        self,
        first_N: np.ndarray,
        own_S: np.ndarray,
        logits_NE: torch.Tensor,
        selected_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        found: Distribution | None,
    ) -> None:
        """The same where all tokens can be summed where they are."""
        lengths_S = np.diff(np.append(np.flatnonzero(first_N), len(first_N)))
        runs = Runs(
            torch.from_numpy(np.cumsum(first_N) - 1).to(logits_NE.device),
            torch.from_numpy(lengths_S).to(logits_NE.device),
        )
        rule = make_rule(self._facts, selected_NK.shape[1])
        found = found or Distribution(logits_NE, self._facts.scoring)
        sums = sum_batch(
            runs, logits_NE, selected_NK.long(), weights_NK, found, self._facts.scoring, rule
        )
        for name, whole in self._sums.items():
            if name != "nonfinite_S":
                own = lengths_S if name == "sequence_tokens" else getattr(sums, name)
                whole[own_S] += own
        self._count_contradicted(
            -1 if rule is None else sums.contradicted,
            in_logits=rule is not None and rule.in_logits,
        )

    def _count_contradicted(self, tokens: int, *, in_logits: bool) -> None:
        """Tokens that the rule does not explain, −1 without a rule."""
        if tokens < 0:
            self._contradicted[1] += 1
        else:
            self._contradicted[0] += tokens
            self._in_logits[0] += in_logits

    def parts(self) -> list[torch.Tensor]:
        """The sums themselves, so that those of other ranks can be added to them."""
        arrays = (*self._sums.values(), self._contradicted, self._in_logits)
        return [torch.from_numpy(array) for array in arrays]

    def finish(self) -> RoutingSums:
        """The sums of all batches, without the dispersion."""
        kinds: dict[str, type] = {"dispatch_SE": np.int32, "sequence_tokens": np.int64}
        sums: dict[str, Any] = {
            name: array.astype(kinds.get(name, np.float64)) for name, array in self._sums.items()
        }
        return RoutingSums(
            **sums,
            top_k=self._facts.top_k or 0,
            contradicted=-1 if self._contradicted[1] else int(self._contradicted[0]),
            margin_in_logits=bool(self._in_logits[0]),
        )
