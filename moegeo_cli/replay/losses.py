"""The loss of the probe by a forward pass only, without gradients.

Legend: B sequences of a batch, S sequences of the probe.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from moegeo_cli.probes import Sample
from moegeo_cli.replay.batches import plan_batches
from moegeo_cli.replay.feeding import batch_losses, call_inputs, list_batches
from moegeo_cli.replay.plan import Plan


def sequence_losses(
    model: nn.Module,
    ids: list[np.ndarray] | list[Sample],
    labels: list[np.ndarray | None],
    plan: Plan,
    batch_size: int | None,
) -> np.ndarray:
    """Sum of the losses of each sequence in nats, shape (S,); 0 for a sequence without a loss.

    Args:
        model: the model, in its current state.
        ids: token ids of each sequence, or samples.
        labels: labels of each sequence of token ids; None for the ids themselves.
        plan: the plan of a replay, for its batches.
        batch_size: sequences per batch; None for about 2,048 tokens.
    """
    device = next(model.parameters()).device
    splits = None if plan.splits_S is None else plan.splits_S.tolist()
    batches = plan_batches(
        [len(i) for i in ids], batch_size, mixed=plan.mixed_lengths, tokens=plan.batch_tokens,
        splits=splits,
    )  # fmt: skip
    loss_S = np.zeros(len(ids))
    with torch.no_grad():
        for batch in list_batches(model, ids, labels, batches, device):
            if batch.targets is None:
                continue
            losses = batch_losses(batch, model(**call_inputs(model, batch, plan)).logits, plan)
            by_sequence = losses.double().reshape(len(batch.sequence_B), -1).sum(1)
            loss_S[batch.sequence_B.cpu().numpy()] = by_sequence.cpu().numpy()
    return loss_S
