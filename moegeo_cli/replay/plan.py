"""What a pass is asked for, what it leaves, and where the rows of a batch belong.

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
SAMPLE_TOKENS = 4096  # rows of the probe whose logits and choices are kept by value


class Statistic(Protocol):
    """Sums over one router's tokens, fed batch by batch."""

    def add(
        self,
        sequence_N: np.ndarray,
        logits_NE: torch.Tensor,
        selected_NK: torch.Tensor,
        weights_NK: torch.Tensor,
        found: Distribution | None = None,
    ) -> None:
        """Add the tokens of some whole sequences, those of one side by side.

        `found` are the distributions of these logits, where something else needed them.
        """

    def parts(self) -> list[torch.Tensor]:
        """The sums themselves: those of several ranks are added up in place."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass is to measure.

    `fishers` lists (kind, unit); `groups_S` gives each sequence's group. `unselected` says
    whether unselected experts carry gradient: "zero", "dense" or "verify" (not known),
    `renormalised` that the weights of those that are selected are divided by their sum.
    `splits_S` says how many tokens of a sequence an encoder reads, where there is one; batches
    then hold sequences of one length and split.
    """

    fishers: tuple[tuple[str, str], ...]
    groups_S: np.ndarray
    unselected: str = "verify"
    renormalised: bool = False
    scoring: str = "softmax"
    batch_size: int | None = None
    batch_tokens: int | None = None  # positions of a batch where no size is given; None: usual
    mixed_lengths: bool = True
    splits_S: np.ndarray | None = None
    sample_rows: np.ndarray | None = None  # rows of the probe whose router inputs are kept
    # Router path -> the module whose first argument is kept for those rows in their place.
    input_modules: Mapping[str, nn.Module] = field(default_factory=dict)
    # What sums up a router's tokens while the pass runs, and the rows of the probe that are kept
    # beside it; where there is none, every row is kept.
    statistic: Callable[[Router], Statistic | None] | None = None
    kept_rows: np.ndarray | None = None
    seed: int = 0

    def of_every_token(self, **changes: Any) -> Plan:
        """The same with other values, and with the logits and choices of every token kept."""
        return replace(self, statistic=None, kept_rows=None, **changes)

    @property
    def needs_loss(self) -> bool:
        """Whether the pass must reach the loss and come back."""
        return any(kind == "empirical" for kind, _ in self.fishers)


@dataclass(slots=True)
class RouterTrace:
    """What one router did over the probe; rows follow the probe's order of tokens.

    `kept` are the rows of the probe that logits, choices and weights are of; None for all.
    `statistic` has summed up the others too.
    `side` is the part of every sequence that the router sees, `rows` those tokens; None for all.
    `observed` is false where its choice was computed; `confirmed` says that the loss's gradient
    then reached the computed experts and no others.
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
        """Let go of all arrays: those of many routers are large together."""
        self.logits_TE = self.logits_TE[:0].copy()
        self.selected_TK = self.weights_TK = self.sample_x_MD = self.statistic = None
        self.fishers = {}


def make_traces(
    routers: Sequence[Router], plan: Plan, tokens: int, groups: int
) -> list[RouterTrace]:
    """An empty trace of each router.

    Args:
        routers: what is measured.
        plan: which Fisher sums are kept.
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
    """The outcome of a pass: per-sequence loss sums (None without a loss) and the traces."""

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
    """Where the real tokens of a batch lie: `flat` among all positions, None without padding.

    `sequence_B` are the batch's sequences, `probe_N` the tokens' rows in the probe, `sequence_N`
    their sequences; `group_spans` and `sequence_spans` are (key, start, stop) of each run of
    tokens with one group or sequence.
    `sides` are the rows of the encoder and of the decoder, where there are two.
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
        """The same with the rows of both sides; sequences of one length and split, unpadded.

        Where nothing is left to predict, what the decoder does with its start token is no row.
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
        """Real tokens only: padding never counts."""
        return rows if self.flat is None else rows.index_select(0, self.flat.to(rows.device))


def _spans(keys: np.ndarray) -> list[tuple[int, int, int]]:
    """(key, start, stop) of each run of equal keys."""
    if not len(keys):
        return []
    cuts = np.flatnonzero(np.diff(keys)) + 1
    starts = np.concatenate([[0], cuts])
    stops = np.concatenate([cuts, [len(keys)]])
    return [(int(keys[a]), int(a), int(b)) for a, b in zip(starts, stops, strict=True)]
