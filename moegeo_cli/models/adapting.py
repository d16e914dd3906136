"""Trace which saved tensors make each parameter of a model, to merge adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moegeo_cli.checkpoints.adapters.layout import ParameterSource
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import MoegeoError
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers, trace_sources
from moegeo_cli.models.failures import explain


def trace_model(model: Any, index: WeightIndex) -> Mapping[str, ParameterSource]:
    """Parameter of a built model -> its shape and the saved tensors that make it.

    Args:
        model: transformers' module tree.
        index: the saved tensors.
    """
    with quiet_transformers():
        sources = trace_sources(model, index.names())
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in sources:
            module = model.get_submodule(name.rpartition(".")[0])
            found[name] = ParameterSource(
                shape=tuple(tensor.shape),
                names=tuple(sources[name].patterns.values()),
                operations=sources[name].operations,
                # set by transformers on experts modules whose kernel can be replaced
                transposed=bool(getattr(module, "is_transposed", False)),
            )
    return found


def trace_config(checkpoint: Checkpoint, index: WeightIndex) -> Mapping[str, ParameterSource]:
    """`trace_model` of the model that a checkpoint's config describes, on the meta device.

    Args:
        checkpoint: the checkpoint.
        index: the saved tensors.

    Raises:
        MoegeoError: the model cannot be built.
    """
    try:
        with quiet_transformers():
            skeleton = build_skeleton(checkpoint, torch.float32, torch.device("cpu"))
    except MoegeoError:
        raise
    except Exception as error:
        raise explain(checkpoint.config_folder, error) from error
    return trace_model(skeleton, index)
