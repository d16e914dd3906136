"""Between a batch and the model: model inputs, rows of the tokens, and losses.

Legend: B sequences of a batch, N their positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.probes import Sample
from moegeo_cli.replay.batches import Batch, make_batches
from moegeo_cli.replay.pairs import SOURCE, align_logits, side_of, split_inputs
from moegeo_cli.replay.plan import BatchRows, Plan, RouterTrace
from moegeo_cli.replay.samples import SampleBatch, make_sample_batches
from moegeo_cli.replay.token_losses import token_losses

AnyBatch = Batch | SampleBatch


def list_batches(
    model: nn.Module,
    ids: Sequence[np.ndarray] | Sequence[Sample],
    labels: Sequence[np.ndarray | None],
    members: list[list[int]],
    device: torch.device,
) -> Iterator[AnyBatch]:
    """The batches of a plan, of token ids or of samples.

    Args:
        model: the model, for the dtype of samples.
        ids: the token ids of each sequence, or the samples.
        labels: the labels of each sequence of token ids; None for the ids themselves.
        members: indices of the sequences of each batch.
        device: the device of the model.
    """
    samples = [i for i in ids if isinstance(i, Sample)]
    if samples:
        dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        return make_sample_batches(samples, members, device, dtype)
    return make_batches([i for i in ids if not isinstance(i, Sample)], labels, members, device)


def find_rows(batch: AnyBatch, lengths_S: np.ndarray, plan: Plan) -> BatchRows:
    """The rows of the batch's real tokens in the batch and in the probe."""
    sequences = batch.sequence_B.cpu().numpy()
    rows = BatchRows.of(batch.flat, sequences, lengths_S, plan.groups_S)
    split = _split(batch, plan)
    return rows if split is None else rows.split(split, plan.groups_S)


def call_inputs(model: nn.Module, batch: AnyBatch, plan: Plan) -> dict[str, Any]:
    """The keyword arguments for the model."""
    split = _split(batch, plan)
    if split is not None and isinstance(batch, Batch):
        return split_inputs(model, batch.input_ids_BN, split)
    return {**batch.inputs, "use_cache": False}


def batch_losses(batch: AnyBatch, logits: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The loss of every position (or sample) in nats, flat; 0 without a label."""
    assert batch.targets is not None
    split = _split(batch, plan)
    if split is not None and isinstance(batch, Batch):
        logits = align_logits(logits, split, batch.input_ids_BN.shape[1])
    return token_losses(logits, batch.targets)


def take_sides(
    model: nn.Module, traces: Sequence[RouterTrace], lengths_S: np.ndarray, splits_S: np.ndarray
) -> None:
    """Set each trace's side (encoder or decoder) and the rows of the tokens that it sees."""
    places_T = np.concatenate([np.arange(n) for n in lengths_S])
    source_T = places_T < np.repeat(splits_S, lengths_S)
    for trace in traces:
        trace.side = side_of(model, trace.router.module)
        trace.rows = np.flatnonzero(source_T == (trace.side == SOURCE))


def _split(batch: AnyBatch, plan: Plan) -> int | None:
    """Number of source tokens of the batch's sequences (encoder-decoder); else None."""
    return None if plan.splits_S is None else int(plan.splits_S[int(batch.sequence_B[0])])
