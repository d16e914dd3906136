"""Load a model whose layers have different numbers of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers
from moegeo_cli.models.streaming.layer_files import LayerFiles, named_tensors


def load_uneven(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    experts: Mapping[int, int],
) -> nn.Module:
    """Build a model and fill it from a checkpoint's files.

    Args:
        checkpoint: the checkpoint.
        device: device of the weights.
        dtype: dtype of the weights.
        experts: layer -> number of experts.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is not in the files.
        ShapeError: a tensor's shape contradicts the config.
    """
    with quiet_transformers():
        model: Any = build_skeleton(checkpoint, dtype, device, experts)
    files = LayerFiles(model, checkpoint, device, dtype)
    files.load(files.sources)
    model.tie_weights()
    files.refuse_missing(named_tensors(model))
    ready: nn.Module = model
    return ready
