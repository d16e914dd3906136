"""A whole model that is filled from a checkpoint's files a group of parameters at a time.

transformers' own loader reads far ahead and holds the model before beside the next one, two to
four times the weights. This way takes one group of tensors beside them, and gives the same bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.discover import read_config
from moegeo_cli.checkpoints.effective import open_effective
from moegeo_cli.errors import MoegeoError, ShapeError
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers
from moegeo_cli.models.failures import explain
from moegeo_cli.models.streaming.layer_files import LayerFiles, named_tensors
from moegeo_cli.models.uneven import own_experts

GROUP_BYTES = 64 * 2**20  # of parameters that are converted together


def open_skeleton(
    path: Path, device: torch.device, dtype: torch.dtype, config_folder: Path
) -> tuple[Any, LayerFiles]:
    """The module tree of a checkpoint without memory, and the files that fill it.

    Args:
        path: the checkpoint.
        device: where it goes.
        dtype: in which dtype it computes.
        config_folder: the folder of its config.json.

    Raises: what opening the files raises, and a config that no model can be built from.
    """
    experts = own_experts(open_effective(path, config_folder), read_config(config_folder))
    try:
        with quiet_transformers():
            skeleton = build_skeleton(config_folder, dtype, device, experts)
    except MoegeoError:
        raise
    except Exception as error:
        raise explain(path, error) from error
    return skeleton, LayerFiles(skeleton, path, device, dtype, config=config_folder)


def fill_model(
    built: nn.Module | None,
    path: Path,
    device: torch.device,
    dtype: torch.dtype,
    config_folder: Path,
) -> nn.Module:
    """The model of a checkpoint, frozen and in evaluation mode.

    Args:
        built: a model of the same config, which is emptied and filled anew; None for a new one.
        path: the checkpoint.
        device: where it goes.
        dtype: in which dtype it computes.
        config_folder: the folder of its config.json.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is not in the files.
        ShapeError: a tensor's shape contradicts the config.
        and what opening the files raises.
    """
    if built is not None:
        try:
            return _fill(built, LayerFiles(built, path, device, dtype, config=config_folder))
        except ShapeError:
            pass  # its layers may have other numbers of experts: a new model tells
    return _fill(*open_skeleton(path, device, dtype, config_folder))


def _fill(model: Any, files: LayerFiles) -> nn.Module:
    names = list(named_tensors(model))
    files.release(names)
    for group in files.groups(GROUP_BYTES):
        files.load(group)
    model.tie_weights()
    files.refuse_missing(names)
    filled: nn.Module = model.eval().requires_grad_(False)
    return filled
