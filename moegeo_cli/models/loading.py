"""Load a model with transformers, and replace its weights by those of the next checkpoint.

transformers gives a parameter that the files lack a random value, and says so only in its loading
report. Here a report with missing keys is an error.

`swap_weights` uses functions of transformers that are not public (see conversion.py). If they are
missing or fail, the model is built again, which is slower and gives the same result.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.adapters.files import has_adapter
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.experts import check_expert_shapes
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.uneven import describe_counts
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    ResourceError,
    ShapeError,
    UsageError,
)
from moegeo_cli.models.accounting import account_for
from moegeo_cli.models.adapting import trace_config, trace_model
from moegeo_cli.models.conversion import convert_into, quiet_transformers
from moegeo_cli.models.failures import explain
from moegeo_cli.models.memory.machine import free_bytes
from moegeo_cli.models.model_config import auto_class, open_config
from moegeo_cli.models.stored import StoredTensor
from moegeo_cli.models.uneven import experts_by_layer
from moegeo_cli.models.uneven_loading import load_uneven

GENERATION = "generation_config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """The device of a name; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        ResourceError: the device cannot be used.
    """
    if name == "auto":
        if torch.accelerator.is_available():
            return torch.device(torch.accelerator.current_accelerator() or "cpu")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("tensors on this device have no values")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            f"the device {name!r} cannot be used",
            found=str(error).splitlines()[0],
            hint="use --device cpu, or --device auto",
        ) from error
    return device


def resolve_dtype(name: str, config: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a name; "auto" is the dtype that the config states, else float32."""
    if name == "auto":
        text = config.get("text_config") or {}
        name = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "")
        name = name.removeprefix("torch.") or "float32"
    return DTYPES.get(name, torch.float32)


def load_model(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    *,
    placed: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Build a checkpoint's causal language model, frozen and in evaluation mode.

    Args:
        checkpoint: the checkpoint.
        device: device of the weights.
        dtype: dtype of the weights.
        placed: arguments of `from_pretrained` that place or split the model; `device` is then not
            used. None to put the whole model on `device`.

    Raises:
        IncompleteCheckpointError: a tensor that the model needs is not in the files.
        ShapeError: a tensor's shape contradicts the config.
        UnsafeFileError: a pickle that would run code.
        UnsupportedArchitectureError: transformers cannot open this model type.
        UnsupportedLayoutError: a torch.distributed checkpoint with names of another framework.
    """
    from transformers import GenerationConfig

    path, place, index = checkpoint.path, checkpoint.config_folder, checkpoint.weights
    if index.obstacle is not None:
        raise index.obstacle
    experts = experts_by_layer(checkpoint)
    if experts and placed:
        raise UsageError(
            "--device-map cannot place a model whose layers have different numbers of experts",
            found=f"--device-map, and {describe_counts(experts)}",
            hint="leave --device-map out; --stream reads a layer at a time",
        )
    if experts:
        return _finish(load_uneven(checkpoint, device, dtype, experts), device)
    index.resolve(partial(trace_config, checkpoint))
    try:
        with quiet_transformers():
            config = open_config(checkpoint)
            auto, architecture = auto_class(config)
            options: dict[str, Any] = {
                "dtype": dtype,
                "output_loading_info": True,
                "ignore_mismatched_sizes": True,  # reported by name, and refused below
                "trust_remote_code": False,
                "local_files_only": True,
                # None: transformers chooses the kernel of a model that declares no SDPA support
                "attn_implementation": "sdpa" if architecture._supports_sdpa else None,
                **(placed or {}),
            }
            index.check_type(config.model_type)
            if place != path and not is_there(path / GENERATION):  # transformers requires one
                options["generation_config"] = GenerationConfig.from_model_config(config)
            # Given a folder, transformers would apply an adapter in it, and it does not find a
            # state dict within another one. Such files are read here, as a state dict.
            if index.is_plain and index.layout.startswith("safetensors") and not has_adapter(path):
                model, report = auto.from_pretrained(path, config=config, **options)
            else:
                if architecture.config_class is config.sub_configs.get("text_config"):
                    # as the auto class does, which requires a path
                    config = config.get_text_config()
                options["generation_config"] = GenerationConfig()
                model, report = architecture.from_pretrained(
                    None, config=config, state_dict=lazy_state(index), **options
                )
    except MoegeoError:
        raise
    except Exception as error:
        found = explain(path, error)
        if isinstance(found, IncompleteCheckpointError):
            check_expert_shapes(index)
        raise found from error
    _refuse_incomplete(path, model, index, report)
    return _finish(model, None if placed else device)


def swap_weights(model: nn.Module, checkpoint: Checkpoint, device: torch.device) -> nn.Module:
    """Replace a model's weights by a checkpoint's; returns the same model, or a new one if needed.

    Args:
        model: a model of transformers. Its config must equal the checkpoint's: the caller checks.
        checkpoint: the checkpoint.
        device: device of the weights.

    Raises:
        MoegeoError: as `load_model`.
    """
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    try:
        with quiet_transformers(), contextlib.ExitStack() as stack:
            index = checkpoint.weights
            if index.obstacle is not None:
                raise index.obstacle
            index.resolve(partial(trace_model, model))
            index.check_type(str(model.config.model_type))  # type: ignore[union-attr]
            account_for(model, index)
            if index.is_plain and index.layout.startswith("safetensors"):
                state = _safetensors_state(index, stack)
            else:
                state = lazy_state(index)
            report = convert_into(model, state, device, dtype)
            model.tie_weights()  # type: ignore[operator]
    except (ImportError, AttributeError, TypeError, RuntimeError, ValueError, KeyError):
        report = None
    if report is None or report.mismatched_keys or report.error_msgs:
        return load_model(checkpoint, device, dtype)
    if set(report.missing_keys) - set(getattr(model, "all_tied_weights_keys", {}) or {}):
        return load_model(checkpoint, device, dtype)
    return _finish(model, device)


def lazy_state(index: WeightIndex) -> dict[str, Any]:
    """The tensors of a checkpoint by name; `[...]` of one reads it."""
    return {name: StoredTensor(index, name) for name in index.names()}


def _safetensors_state(index: WeightIndex, stack: contextlib.ExitStack) -> dict[str, Any]:
    """The tensors of a safetensors checkpoint by name; `stack` closes the files."""
    from safetensors import safe_open

    state: dict[str, Any] = {}
    for file in index.files:
        opened = stack.enter_context(safe_open(file, framework="pt"))
        state.update({key: opened.get_slice(key) for key in opened.keys()})  # noqa: SIM118
    return state


def _finish(model: Any, device: torch.device | None) -> nn.Module:
    """Freeze a model, switch it to evaluation mode (no jitter, no dropout), move it to a device."""
    model.eval()
    model.requires_grad_(False)
    try:
        ready: nn.Module = model if device is None else model.to(device)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"the model does not fit on {device}", hint="use --device cpu, or --dtype bfloat16"
        ) from error
    return ready


def _refuse_incomplete(
    path: Path, model: Any, index: WeightIndex, report: Mapping[str, Any]
) -> None:
    """Refuse missing parameters, which would be random, and tensors that nothing used."""
    if report.get("mismatched_keys"):
        name, saved, wanted = sorted(report["mismatched_keys"])[0]
        raise ShapeError(
            f"{path.name}: the shape of {name} contradicts the config",
            found=f"{tuple(saved)} in the file, {tuple(wanted)} by the config",
        )
    missing = sorted(report.get("missing_keys") or ())
    account_for(model, index, missing=missing)
    if missing:
        raise IncompleteCheckpointError(
            f"{path.name}: {len(missing)} tensors that the model needs are not in its files",
            found=f"missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}",
            hint="save the checkpoint again with model.save_pretrained",
        )


def read_ahead(paths: list[Path]) -> threading.Thread | None:
    """Read files into the page cache in a background thread, so that loading them next is fast.

    Args:
        paths: the files.

    Returns:
        The thread. None if the files would fill more than half of the free memory: they would then
        evict each other from the cache.
    """
    try:
        size = sum(path.stat().st_size for path in paths)
    except OSError:
        return None  # the loader itself will meet and explain this
    if size > free_bytes(torch.device("cpu")) / 2:
        return None

    def read() -> None:
        for path in paths:
            try:
                with path.open("rb", buffering=0) as file:
                    while file.read(1 << 23):
                        pass
            except OSError:
                return  # the loader itself will meet and explain this

    thread = threading.Thread(target=read, name="moegeo-read-ahead", daemon=True)
    thread.start()
    return thread
