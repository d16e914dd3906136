"""Data types of the replay: the plan of a pass, its results, and the rows of a batch.

Legend: B sequences of a batch, N real tokens of a batch, T of the probe, S sequences,
D router input width, E experts, K experts chosen per token, G groups of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from moegeo_cli.fisher.accumulation import FisherAccumulator, exact_groups_fit
from moegeo_cli.fisher.categorical import Distribution
from moegeo_cli.replay.pairs import SOURCE, TARGET
from moegeo_cli.routers.finding import Router

CATEGORICAL = ("categorical", "token")


class Statistic(Protocol):
    """Sums over one router's tokens, to which batches are added."""

    def add(
        self,
        spans: Sequence[tuple[int, int, int]],
        logits_NE: torch.Tensor,
        selected_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        found: Distribution | None = None,
    ) -> None:
        """Add the tokens of some whole sequences.

        `spans` are (sequence, first row, row after the last). `found` are the distributions of
        these logits, if they are computed already.
        """

    def parts(self) -> list[torch.Tensor]:
        """The tensors of the sums, which are added up over ranks in place."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass measures.

    Attributes:
        fishers: (kind, unit) pairs.
        groups_S: each sequence's group.
        unselected: whether unselected experts carry gradient: "zero", "dense" or "verify" (find
            out).
        renormalised: whether the combine weights of the selected experts are divided by their sum.
        scoring: name of the scoring.
        batch_size: sequences per batch; None to limit batches by tokens.
        batch_tokens: positions per batch without a `batch_size`; None for the default.
        mixed_lengths: whether a batch may mix sequence lengths, with padding.
        splits_S: number of tokens of each sequence that an encoder reads; None without an encoder.
        sample_rows: rows of the probe whose router inputs are kept; None for none.
        input_modules: by router path, a module whose first argument is kept instead of the
            router's input.
        statistic: makes the statistic that sums up a router's tokens; None to keep every row.
        kept_rows: with a statistic, the rows whose logits and choices are kept too.
        seed: seed of random projections.
    """

    fishers: tuple[tuple[str, str], ...]
    groups_S: np.ndarray
    unselected: str = "verify"
    renormalised: bool = False
    scoring: str = "softmax"
    batch_size: int | None = None
    batch_tokens: int | None = None
    mixed_lengths: bool = True
    splits_S: np.ndarray | None = None
    sample_rows: np.ndarray | None = None
    input_modules: Mapping[str, nn.Module] = field(default_factory=dict)
    statistic: Callable[[Router], Statistic | None] | None = None
    kept_rows: np.ndarray | None = None
    seed: int = 0

    def of_every_token(self, **changes: Any) -> Plan:
        """A copy with changed values that keeps the logits and choices of every token."""
        return replace(self, statistic=None, kept_rows=None, **changes)

    @property
    def needs_loss(self) -> bool:
        """Whether the pass needs the loss and its gradient."""
        return any(kind == "empirical" for kind, _ in self.fishers)


@dataclass(slots=True)
class RouterTrace:
    """What one router did over the probe; rows are in the probe's order of tokens.

    Attributes:
        router: the router.
        logits_TE: logits at the kept rows, float32.
        selected_TK: selected experts at the kept rows.
        weights_TK: combine weights at the kept rows.
        fishers: Fisher sums by (kind, unit).
        sample_x_MD: router inputs at the sampled rows.
        problem: why the router could not be measured; else None.
        calls: number of calls.
        kept: the kept rows of the probe; None for all.
        statistic: sums over all rows.
        side: the part of each sequence that the router sees (encoder-decoder); else None.
        rows: the rows that the router sees; None for all.
        observed: whether the choice was read from the model, not computed from the logits.
        confirmed: whether the loss's gradient confirmed a computed choice.
    """

    router: Router
    logits_TE: np.ndarray
    selected_TK: np.ndarray | None = None
    weights_TK: np.ndarray | None = None
    fishers: dict[tuple[str, str], FisherAccumulator] = field(default_factory=dict)
    sample_x_MD: np.ndarray | None = None
    problem: str | None = None
    calls: int = 0
    kept: np.ndarray | None = None
    statistic: Statistic | None = None
    side: str | None = None
    rows: np.ndarray | None = None
    observed: bool = True
    confirmed: bool = False

    def release(self) -> None:
        """Free all arrays, because those of many routers need much memory."""
        self.logits_TE = self.logits_TE[:0].copy()
        self.selected_TK = self.weights_TK = self.sample_x_MD = self.statistic = None
        self.fishers = {}


def make_traces(
    routers: Sequence[Router], plan: Plan, tokens: int, groups: int
) -> list[RouterTrace]:
    """An empty trace for each router.

    Args:
        routers: the routers to measure.
        plan: the plan of the pass.
        tokens: T.
        groups: G.
    """
    shapes = [(int(r.weight_ED.shape[0]), int(r.weight_ED.shape[1])) for r in routers]
    exact = exact_groups_fit(shapes, len(plan.fishers), groups)
    statistics = [plan.statistic(r) if plan.statistic else None for r in routers]
    parts = [
        (router, own, None if own is None else plan.kept_rows)
        for router, own in zip(routers, statistics, strict=True)
    ]
    return [
        RouterTrace(
            router=router,
            logits_TE=np.zeros(
                (tokens if kept is None else len(kept), router.experts), dtype=np.float32
            ),
            kept=kept,
            statistic=statistic,
            fishers={
                key: FisherAccumulator(
                    router.experts,
                    int(router.weight_ED.shape[1]),
                    groups,
                    exact_groups=exact,
                    device=router.weight_ED.device,
                    seed=plan.seed,
                )
                for key in plan.fishers
            },
        )
        for router, statistic, kept in parts
    ]


@dataclass(slots=True)
class Replay:
    """The result of a pass: the traces of the routers, and the loss sum of each sequence.

    `loss_S` is None without a loss.
    """

    traces: list[RouterTrace]
    sequence_T: np.ndarray
    loss_S: np.ndarray | None
    loss_tokens_S: np.ndarray
    batch_size: int | None
    unselected: str
    notes: list[str]
    shares: list[list[list[int]]] = field(default_factory=list)  # batches of each rank


@dataclass(frozen=True, slots=True)
class BatchRows:
    """The rows of a batch's real tokens.

    Attributes:
        flat: their indices among all positions of the batch; None without padding.
        sequence_B: the sequences of the batch.
        probe_N: the tokens' rows in the probe.
        sequence_N: the tokens' sequences.
        group_spans: (group, start, stop) of each run of tokens of one group.
        sequence_spans: (sequence, start, stop) of each run of tokens of one sequence.
        sides: the rows of the encoder and of the decoder; empty for other models.
    """

    flat: torch.Tensor | None
    sequence_B: np.ndarray
    probe_N: np.ndarray
    sequence_N: np.ndarray
    group_spans: list[tuple[int, int, int]]
    sequence_spans: list[tuple[int, int, int]]
    sides: Mapping[str, BatchRows] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        flat: torch.Tensor | None,
        sequence_B: np.ndarray,
        lengths_S: np.ndarray,
        groups_S: np.ndarray,
    ) -> BatchRows:
        """The rows of a batch that holds these sequences, in this order."""
        starts_S = np.cumsum(lengths_S) - lengths_S
        sequence_N = np.repeat(sequence_B, lengths_S[sequence_B])
        probe_N = np.concatenate(
            [np.arange(starts_S[s], starts_S[s] + lengths_S[s]) for s in sequence_B]
        )
        return cls._at(flat, sequence_B, probe_N, sequence_N, groups_S)

    @classmethod
    def _at(
        cls,
        flat: torch.Tensor | None,
        sequence_B: np.ndarray,
        probe_N: np.ndarray,
        sequence_N: np.ndarray,
        groups_S: np.ndarray,
    ) -> BatchRows:
        spans = _spans(groups_S[sequence_N]), _spans(sequence_N)
        return cls(flat, sequence_B, probe_N, sequence_N, *spans)

    def split(self, split: int, groups_S: np.ndarray) -> BatchRows:
        """Add the rows of both sides, for unpadded sequences of one length and one split.

        If there is no target token, the decoder's start token does not count as a row.
        """
        length = int((self.sequence_N == self.sequence_N[0]).sum())
        first_N = np.arange(len(self.probe_N)) % length < split
        nothing = torch.zeros(0, dtype=torch.long) if split == length else None

        def at(flat: torch.Tensor | None, chosen_N: np.ndarray) -> BatchRows:
            rows = self.probe_N[chosen_N], self.sequence_N[chosen_N]
            return self._at(flat, self.sequence_B, *rows, groups_S)

        return replace(self, sides={SOURCE: at(None, first_N), TARGET: at(nothing, ~first_N)})

    def of_side(self, side: str | None) -> BatchRows:
        """The rows that a router on this side sees."""
        return self if side is None else self.sides[side]

    def real(self, rows: torch.Tensor) -> torch.Tensor:
        """Only the rows of real tokens, without padding."""
        return rows if self.flat is None else rows.index_select(0, self.flat.to(rows.device))


def _spans(keys: np.ndarray) -> list[tuple[int, int, int]]:
    """(key, start, stop) of each run of equal keys."""
    if not len(keys):
        return []
    cuts = np.flatnonzero(np.diff(keys)) + 1
    starts = np.concatenate([[0], cuts])
    stops = np.concatenate([cuts, [len(keys)]])
    return [(int(keys[a]), int(a), int(b)) for a, b in zip(starts, stops, strict=True)]
