"""The loss of each position from the model's logits, computed in blocks of rows to save memory.

Cross-entropy keeps a float32 copy of the logits, their log-softmax and its gradient. With a large
vocabulary that is the largest part of a batch's memory. Rows are independent, so they are computed
in blocks, and once more in the backward pass. The results are the same bits.

Legend: N positions, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from moegeo_cli.errors import ProbeError
from moegeo_cli.replay.batches import IGNORED_LABEL

# Size of a block of float32 logits: glibc returns freed blocks of more than 32 MiB to the system.
ROWS_BYTES = 40 * 2**20
COPIES = 3  # arrays of a block: its logits as float32, their log-softmax, and its gradient


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target in nats, flat; 0 for a target of -100.

    Args:
        logits: shape (…, V).
        targets: shape (…), -100 for no loss.

    Raises:
        ProbeError: the labels do not fit the shape of the logits or their number of classes.
    """
    given = targets[targets != IGNORED_LABEL]
    low, high = (int(given.min()), int(given.max())) if given.numel() else (0, 0)
    if logits.shape[:-1] != targets.shape or low < 0 or high >= logits.shape[-1]:
        raise ProbeError(
            "the probe's labels do not fit what the model returns",
            found=f"labels {tuple(targets.shape)} from {low} to {high}, "
            f"logits {tuple(logits.shape)}",
            hint="give one label per sample or per position, counted from 0; -100 for no loss",
        )
    return flat_losses(logits, targets)


def flat_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As `token_losses`, without checking the labels."""
    logits_NV = logits.reshape(-1, logits.shape[-1])
    targets_N = targets.reshape(-1).to(logits.device)
    if len(targets_N) <= rows_at_once(logits.shape[-1]):
        return _cross_entropy(logits_NV, targets_N)
    found: torch.Tensor = _ByRows.apply(logits_NV, targets_N)
    return found


def rows_at_once(vocabulary: int) -> int:
    """Number of rows of a block."""
    return max(1, ROWS_BYTES // (4 * max(1, vocabulary)))


def logit_bytes(positions: int, vocabulary: int, itemsize: int) -> int:
    """Bytes of the logits, of their gradient, and of one block of the loss."""
    rows = min(ROWS_BYTES, positions * vocabulary * 4) * COPIES
    return positions * vocabulary * itemsize * 2 + rows


def _cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(
        logits_NV.float(), targets_N, reduction="none", ignore_index=IGNORED_LABEL
    )


class _ByRows(torch.autograd.Function):
    """Cross-entropy in blocks of rows; the backward pass computes each block again."""

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits_NV, targets_N)
        rows = rows_at_once(logits_NV.shape[1])
        pairs = zip(logits_NV.split(rows), targets_N.split(rows), strict=True)
        return torch.cat([_cross_entropy(*pair) for pair in pairs])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits_NV, targets_N = ctx.saved_tensors
        rows = rows_at_once(logits_NV.shape[1])
        found_NV = torch.empty_like(logits_NV)
        parts = (t.split(rows) for t in (logits_NV, targets_N, gradients[0], found_NV))
        for own_NV, own_N, gradient_N, target_NV in zip(*parts, strict=True):
            with torch.enable_grad():
                leaf_NV = own_NV.detach().requires_grad_(True)
                losses_N = _cross_entropy(leaf_NV, own_N)
            target_NV.copy_(torch.autograd.grad(losses_N, leaf_NV, gradient_N)[0])
        return found_NV, None
