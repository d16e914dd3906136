"""transformers' conversion rules: which saved tensors make each parameter, and by which operations.

Saved tensors often differ from the parameters of the module tree: experts are saved one by one, or
names have changed. The rules are in transformers and are not public. Only this module uses them,
and tests/models/test_conversion.py fails if they change.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.models.model_config import auto_class, open_config
from moegeo_cli.models.uneven import experts_by_layer, join_layers

# Operations that do not change the first dimension (the experts).
BY_EXPERT = {"MergeModulelist", "Concatenate", "Transpose", "Interleave"}


@dataclass(frozen=True, slots=True)
class Source:
    """The saved tensors that make one parameter.

    Attributes:
        patterns: pattern of the conversion rule -> names of the saved tensors that match it.
        operations: class names of the rule's operations, in order; () for a renaming.
    """

    patterns: Mapping[str, tuple[str, ...]]
    operations: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all these tensors."""
        return tuple(name for names in self.patterns.values() for name in names)


def build_skeleton(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    experts: Mapping[int, int] | None = None,
) -> Any:
    """The model that config.json describes, with parameters on the meta device (no memory).

    Buffers that are not saved in files (rotary frequencies) are computed, on `device`.

    Args:
        checkpoint: the checkpoint.
        dtype: dtype of the parameters.
        device: device of the computed buffers.
        experts: layer -> its number of experts; None for the numbers of the checkpoint's files.

    Raises:
        UnsupportedArchitectureError: transformers has no such language model.
    """
    counts = experts_by_layer(checkpoint) if experts is None else experts
    return join_layers(lambda count: _build_empty(checkpoint, dtype, device, count), counts)


def _build_empty(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, experts: int | None
) -> Any:
    config = open_config(checkpoint, experts)
    auto, architecture = auto_class(config)
    kernel = "sdpa" if architecture._supports_sdpa else None
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype, attn_implementation=kernel)
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers[name] is not None:
                module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        module._is_hf_initialized = False
    model.initialize_weights()  # parameters are on the meta device: only those buffers get values
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            if module._buffers[name] is not None:
                module._buffers[name] = module._buffers[name].to(device)
    return model.eval().requires_grad_(False)


def trace_sources(model: Any, names: Iterable[str]) -> dict[str, Source]:
    """Parameter or buffer of a model -> the saved tensors that make it.

    Args:
        model: transformers' module tree.
        names: names of the saved tensors.

    Returns:
        Sources by the name of the parameter. If a rule makes several parameters, its source is
        listed under the first one only.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    rules = get_model_conversion_mapping(model, None, None) or []
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    operations = {
        pattern: tuple(type(op).__name__ for op in rule.operations)
        for rule in converters
        for pattern in rule.source_patterns
    }
    wanted, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, tuple[dict[str, list[str]], tuple[str, ...]]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, wanted)
        if target not in wanted and name in wanted:
            target, pattern = rename_source_key(name, [], [], prefix, wanted)
        if target in wanted:
            patterns, _ = found.setdefault(target, ({}, operations.get(pattern or "", ())))
            patterns.setdefault(pattern or name, []).append(name)
    return {
        target: Source({p: tuple(n) for p, n in patterns.items()}, done)
        for target, (patterns, done) in found.items()
    }


def convert_into(
    model: Any, state: Mapping[str, Any], device: torch.device, dtype: torch.dtype
) -> Any:
    """Convert saved tensors to parameters of a model. Other parameters are not changed.

    Args:
        model: transformers' module tree.
        state: saved name -> an object whose `[...]` is the tensor.
        device: device of the parameters.
        dtype: dtype of the parameters, except those that the model keeps in float32.

    Returns:
        transformers' loading report, with missing_keys, mismatched_keys, error_msgs and
        conversion_errors.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    report, _ = convert_and_load_state_dict_in_model(
        model=model,
        state_dict=dict(state),
        load_config=LoadStateDictConfig(
            device_map={"": device},
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            weight_mapping=get_model_conversion_mapping(model, None, None),
        ),
    )
    return report


def indexes_experts(module: nn.Module) -> bool:
    """Whether a module's own forward indexes its fused weights one expert at a time."""
    return hasattr(type(module), "_apply_gate")


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """A context without the progress bars and log messages of transformers."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
