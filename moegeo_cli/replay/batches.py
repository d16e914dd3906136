"""Put the sequences of a probe into batches, with as little padding as possible.

Legend: B sequences of a batch, N their longest length.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.routers import OTHER_TOWER
from moegeo_cli.probes import Sample

IGNORED_LABEL = -100
STATEFUL = re.compile(r"Mamba|Delta(Net|Attention)|Lightning|ShortConv")
TOKENS_PER_BATCH = 2048  # enough rows to fill the matrix products of a small expert


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of right-padded sequences; `sequence_B` holds their indices in the probe.

    `mask_BN` is None without padding, so that models take their fast path. `targets_BN` holds at
    position t the label that t predicts (the label of t + 1), or -100.
    """

    input_ids_BN: torch.Tensor
    mask_BN: torch.Tensor | None
    targets_BN: torch.Tensor
    sequence_B: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The keyword arguments for the model."""
        if self.mask_BN is None:
            return {"input_ids": self.input_ids_BN}
        return {"input_ids": self.input_ids_BN, "attention_mask": self.mask_BN}

    @property
    def targets(self) -> torch.Tensor | None:
        """The label that each position predicts, (B, N)."""
        return self.targets_BN

    @property
    def flat(self) -> torch.Tensor | None:
        """Indices of the real tokens among all positions; None without padding."""
        return None if self.mask_BN is None else self.real_BN.reshape(-1).nonzero().squeeze(1)

    @property
    def tokens(self) -> int:
        """Number of real tokens."""
        return int(self.real_BN.sum())

    @property
    def positions(self) -> int:
        """Number of positions, including padding."""
        return self.input_ids_BN.numel()

    @property
    def real_BN(self) -> torch.Tensor:
        """True at real positions."""
        if self.mask_BN is not None:
            return self.mask_BN.bool()
        return torch.ones_like(self.input_ids_BN, dtype=torch.bool)


def next_token_targets(input_ids: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """The label that each position predicts: the next position's, or -100 at the end."""
    source = input_ids if labels is None else labels
    targets = np.full(len(input_ids), IGNORED_LABEL, dtype=np.int64)
    targets[:-1] = source[1:]
    return targets


def count_losses(
    ids: list[np.ndarray] | list[Sample], labels: Sequence[np.ndarray | None]
) -> np.ndarray:
    """Number of losses of each sequence, shape (S,)."""
    counts = []
    for place, labels_N in enumerate(labels):
        own = ids[place]
        if isinstance(own, Sample):
            counts.append(own.loss_tokens)
        else:
            counts.append(int((next_token_targets(own, labels_N) != IGNORED_LABEL).sum()))
    return np.array(counts, dtype=np.int64)


def carries_state(model: nn.Module) -> bool:
    """Whether some layer carries a state along the sequence (recurrence, convolution).

    In theory, padding to the right of a causal recurrence changes no real token. Some kernels do
    not keep to that, so such models get batches without padding.
    """
    return any(
        isinstance(module, nn.Conv1d) or STATEFUL.search(type(module).__name__)
        for path, module in model.named_modules()
        if not OTHER_TOWER.search(path)
    )


def plan_batches(
    lengths: Sequence[int],
    batch_size: int | None,
    *,
    mixed: bool = True,
    tokens: int | None = None,
    splits: Sequence[int] | None = None,
) -> list[list[int]]:
    """Assign sequences to batches: sorted by length (stable), limited by number or by tokens.

    Args:
        lengths: number of tokens of each sequence.
        batch_size: sequences per batch; None for as many as fit `tokens`.
        mixed: whether a batch may mix lengths, with padding.
        tokens: tokens per batch if `batch_size` is None; None for TOKENS_PER_BATCH.
        splits: number of source tokens of each sequence (encoder-decoder); then a batch has one
            length and one split.

    Returns:
        Indices of the sequences of each batch.
    """
    mixed = mixed and splits is None
    kinds = list(zip(lengths, splits or lengths, strict=True))
    order = sorted(range(len(lengths)), key=lambda s: kinds[s])
    batches: list[list[int]] = []
    for s in order:
        current = batches[-1] if batches else []
        limit = batch_size or max(1, (tokens or TOKENS_PER_BATCH) // max(lengths[s], 1))
        same = bool(current) and kinds[current[0]] == kinds[s]
        # A shorter sequence is padded only if less than an eighth of the batch is wasted.
        close = bool(current) and mixed and lengths[current[0]] * 8 >= lengths[s] * 7
        if current and len(current) < limit and (same or close):
            current.append(s)
        else:
            batches.append([s])
    return batches


def make_batches(
    ids: Sequence[np.ndarray],
    labels: Sequence[np.ndarray | None],
    plan: Sequence[Sequence[int]],
    device: torch.device,
) -> Iterator[Batch]:
    """The batches of a plan, on the device."""
    for members in plan:
        width = max(len(ids[s]) for s in members)
        tokens = np.zeros((len(members), width), dtype=np.int64)
        mask = np.zeros((len(members), width), dtype=np.int64)
        targets = np.full((len(members), width), IGNORED_LABEL, dtype=np.int64)
        for row, s in enumerate(members):
            length = len(ids[s])
            tokens[row, :length] = ids[s]
            mask[row, :length] = 1
            targets[row, :length] = next_token_targets(ids[s], labels[s])
        padded = bool((mask == 0).any())
        yield Batch(
            input_ids_BN=torch.from_numpy(tokens).to(device),
            mask_BN=torch.from_numpy(mask).to(device) if padded else None,
            targets_BN=torch.from_numpy(targets).to(device),
            sequence_B=torch.tensor(list(members), device=device),
        )
