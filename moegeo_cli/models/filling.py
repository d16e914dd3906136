"""Builds a whole model and fills it from the files, a group of parameters at a time.

transformers' own loader reads far ahead and holds the model before beside the next one, two to
four times the weights. This way takes one group of tensors beside them, and gives the same bits.
"""

from __future__ import annotations

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError, ShapeError
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers
from moegeo_cli.models.failures import explain
from moegeo_cli.models.streaming.layer_files import LayerFiles, named_tensors

GROUP_BYTES = 64 * 2**20  # of parameters that are converted together


def open_skeleton(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> LayerFiles:
    """The files of a checkpoint and, as their `model`, the empty module tree that they fill.

    Args:
        checkpoint: the checkpoint.
        device: where it goes.
        dtype: in which dtype it computes.

    Raises: what opening the files raises, and a config that no model can be built from.
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
        built: a model of the same config, which is emptied and filled anew; None for a new one.
        checkpoint: the checkpoint.
        device: where it goes.
        dtype: in which dtype it computes.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is not in the files.
        ShapeError: a tensor's shape contradicts the config.
        and what opening the files raises.
    """
    if built is not None:
        try:
            return fill_tree(LayerFiles(built, checkpoint, device, dtype))
        except ShapeError:
            pass  # its layers may have other numbers of experts: a new model tells
    return fill_tree(open_skeleton(checkpoint, device, dtype))


def fill_tree(files: LayerFiles) -> nn.Module:
    """The module tree of some files with their tensors, frozen and in evaluation mode.

    Raises: as `fill_model`.
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
