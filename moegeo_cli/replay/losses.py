"""The probe's loss alone: a forward pass, without gradients.

Legend: B sequences of a batch, S sequences of the probe.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.replay.batches import IGNORED_LABEL, make_batches, plan_batches


def sequence_losses(
    model: nn.Module,
    ids: list[np.ndarray],
    labels: list[np.ndarray | None],
    batch_size: int | None,
    *,
    mixed_lengths: bool,
) -> np.ndarray:
    """Sum of next-token cross-entropies of each sequence, in nats, shape (S,).

    Args:
        model: the model as it stands.
        ids: token ids by sequence.
        labels: likewise; None for the ids themselves.
        batch_size: sequences a batch; None for about 2,048 tokens.
        mixed_lengths: whether padding changes nothing for this model.
    """
    device = next(model.parameters()).device
    plan = plan_batches([len(i) for i in ids], batch_size, mixed=mixed_lengths)
    loss_S = np.zeros(len(ids))
    with torch.no_grad():
        for batch in make_batches(ids, labels, plan, device):
            inputs = {"input_ids": batch.input_ids_BN, "use_cache": False}
            if batch.mask_BN is not None:
                inputs["attention_mask"] = batch.mask_BN
            logits = model(**inputs).logits.float()
            losses = F.cross_entropy(
                logits.reshape(-1, logits.shape[-1]),
                batch.targets_BN.reshape(-1),
                reduction="none",
                ignore_index=IGNORED_LABEL,
            )
            by_sequence = losses.double().reshape(len(batch.sequence_B), -1).sum(1)
            loss_S[batch.sequence_B.cpu().numpy()] = by_sequence.cpu().numpy()
    return loss_S
