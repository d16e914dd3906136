"""Build a whole model and fill it from the files, one group of parameters at a time.

The result equals that of transformers' own loader, bit for bit. Peak memory is the weights plus one
group of saved tensors. transformers' loader needs two to four times the weights, because it reads
far ahead, and because the previous checkpoint's model is still in memory.
"""

from __future__ import annotations

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError, ShapeError
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers
from moegeo_cli.models.failures import explain
from moegeo_cli.models.streaming.layer_files import LayerFiles, named_tensors

GROUP_BYTES = 64 * 2**20  # bytes of saved tensors that are converted together


def open_skeleton(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> LayerFiles:
    """Open a checkpoint's files, with an empty module tree to fill as their `model`.

    Args:
        checkpoint: the checkpoint.
        device: device of the weights.
        dtype: dtype of the weights.

    Raises:
        MoegeoError: the files cannot be opened, or no model can be built from the config.
    """
    try:
        with quiet_transformers():
            skeleton = build_skeleton(checkpoint, dtype, device)
    except MoegeoError:
        raise
    except Exception as error:
        raise explain(checkpoint.path, error) from error
    return LayerFiles(skeleton, checkpoint, device, dtype)


def fill_model(
    built: nn.Module | None, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The model of a checkpoint, frozen and in evaluation mode.

    Args:
        built: a model of the same config, which is emptied and filled again; None to build one.
        checkpoint: the checkpoint.
        device: device of the weights.
        dtype: dtype of the weights.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is not in the files.
        ShapeError: a tensor's shape contradicts the config.
        MoegeoError: as `open_skeleton`.
    """
    if built is not None:
        try:
            return fill_tree(LayerFiles(built, checkpoint, device, dtype))
        except ShapeError:
            pass  # its layers may have other numbers of experts, for which a new model is needed
    return fill_tree(open_skeleton(checkpoint, device, dtype))


def fill_tree(files: LayerFiles) -> nn.Module:
    """Fill `files.model` from its files; returns it frozen and in evaluation mode.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is not in the files.
        ShapeError: a tensor's shape contradicts the config.
    """
    model = files.model
    names = list(named_tensors(model))
    files.release(names)
    for group in files.groups(GROUP_BYTES):
        files.load(group)
    model.tie_weights()
    files.refuse_missing(names)
    filled: nn.Module = model.eval().requires_grad_(False)
    return filled
