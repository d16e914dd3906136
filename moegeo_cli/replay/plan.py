"""What a pass is asked for, what it leaves, and where the rows of a batch belong.

Legend: B sequences of a batch, N real tokens of a batch, T of the probe, S sequences,
D router input width, E experts, K experts chosen per token, G groups of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from moegeo_cli.fisher.accumulation import FisherAccumulator
from moegeo_cli.replay.routers import Router

CATEGORICAL = ("categorical", "token")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a pass is to measure.

    `fishers` lists (kind, unit); `groups_S` gives each sequence's group. `unselected` says
    whether unselected experts carry gradient: "zero", "dense" or "verify" (not known).
    """

    fishers: tuple[tuple[str, str], ...]
    groups_S: np.ndarray
    unselected: str = "verify"
    scoring: str = "softmax"
    batch_size: int | None = None
    mixed_lengths: bool = True
    sample_rows: np.ndarray | None = None  # rows of the probe whose router inputs are kept
    seed: int = 0

    @property
    def needs_loss(self) -> bool:
        """Whether the pass must reach the loss and come back."""
        return any(kind == "empirical" for kind, _ in self.fishers)


@dataclass(slots=True)
class RouterTrace:
    """What one router did over the probe; rows follow the probe's order of tokens.

    `observed` is false where its choice was computed; `confirmed` says that the loss's gradient
    then reached the computed experts and no others.
    """

    router: Router
    logits_TE: np.ndarray
    selected_TK: np.ndarray | None = None
    weights_TK: np.ndarray | None = None
    fishers: dict[tuple[str, str], FisherAccumulator] = field(default_factory=dict)
    dispatched_GE: np.ndarray | None = None
    sample_x_MD: np.ndarray | None = None
    problem: str | None = None
    calls: int = 0
    observed: bool = True
    confirmed: bool = False


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


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Where the real tokens of a batch lie: `flat` among all positions, None without padding.

    `sequence_B` are the batch's sequences, `probe_N` the tokens' rows in the probe and
    `sequence_N` their sequences; `group_spans` and
    `sequence_spans` are (key, start, stop) of each run of tokens with one group or sequence.
    """

    flat: torch.Tensor | None
    sequence_B: np.ndarray
    probe_N: np.ndarray
    sequence_N: np.ndarray
    group_spans: list[tuple[int, int, int]]
    sequence_spans: list[tuple[int, int, int]]

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
        return cls(
            flat=flat,
            sequence_B=sequence_B,
            probe_N=np.concatenate(
                [np.arange(starts_S[s], starts_S[s] + lengths_S[s]) for s in sequence_B]
            ),
            sequence_N=sequence_N,
            group_spans=_spans(groups_S[sequence_N]),
            sequence_spans=_spans(sequence_N),
        )

    def real(self, rows: torch.Tensor) -> torch.Tensor:
        """Real tokens only: padding never counts."""
        return rows if self.flat is None else rows.index_select(0, self.flat)


def _spans(keys: np.ndarray) -> list[tuple[int, int, int]]:
    """(key, start, stop) of each run of equal keys."""
    if not len(keys):
        return []
    cuts = np.flatnonzero(np.diff(keys)) + 1
    starts = np.concatenate([[0], cuts])
    stops = np.concatenate([cuts, [len(keys)]])
    return [(int(keys[a]), int(a), int(b)) for a, b in zip(starts, stops, strict=True)]
