"""Models that accelerate places on several devices, in CPU memory or on disk (--device-map).

accelerate moves each offloaded part to its device before it computes, and releases it afterwards.
Routers are not offloaded: they are small, and their weights are read and have gradients.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError, ResourceError, UsageError
from moegeo_cli.models.conversion import build_skeleton, quiet_transformers
from moegeo_cli.models.failures import explain
from moegeo_cli.models.loading import load_model
from moegeo_cli.models.sources import ReplayMode
from moegeo_cli.routers.finding import LAYER_INDEX, find_routers


class DeviceMapModels:
    """transformers' models placed by a device map. Every checkpoint is loaded anew.

    Args:
        device_map: "disk", a strategy of accelerate ("auto", ...), or a JSON object of
            module -> device.
        device: device of the computation for "disk".
        dtype: dtype of the weights and the computation.

    Raises:
        ResourceError: accelerate is not installed.
    """

    def __init__(self, device_map: str, device: torch.device, dtype: torch.dtype) -> None:
        if importlib.util.find_spec("accelerate") is None:
            raise ResourceError(
                "--device-map needs the package accelerate, which is not installed",
                hint="pip install 'moegeo[offload]'",
            )
        self.device_map, self.device, self.dtype = device_map, device, dtype
        self.mode = ReplayMode(form="parts", unplanned="accelerate places the parts of the model")
        self._parts: tempfile.TemporaryDirectory[str] | None = None

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """See `ModelSource`."""
        if self._parts is not None:
            self._parts.cleanup()
        self._parts = tempfile.TemporaryDirectory(prefix="moegeo-", ignore_cleanup_errors=True)
        # accelerate warns that parts are offloaded, which the user asked for.
        logger = logging.getLogger("accelerate.big_modeling")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            placed = {"device_map": self._placement(checkpoint), "offload_folder": self._parts.name}
            model = load_model(checkpoint, self.device, self.dtype, placed=placed)
        except MoegeoError as error:
            if error.hint is None:
                error.hint = f"if the files are whole, check --device-map {self.device_map}"
            raise
        finally:
            logger.setLevel(level)
        _keep_routers(model)
        return model

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`; always refused, because a fresh model has no files to offload."""
        raise UsageError(
            "--baseline init does not go with --device-map: it builds the whole model in memory",
            found="--device-map with --baseline init",
            hint="leave --device-map out, or choose another --baseline",
        )

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: accelerate loads each part when it computes."""
        return contextlib.nullcontext()

    def _placement(self, checkpoint: Checkpoint) -> str | dict[str, Any]:
        if self.device_map.startswith("{"):
            found: dict[str, Any] = json.loads(self.device_map)
            return found
        if self.device_map != "disk":
            return self.device_map
        try:
            with quiet_transformers():
                skeleton = build_skeleton(checkpoint, self.dtype, self.device)
        except MoegeoError:
            raise
        except Exception as error:
            raise explain(checkpoint.path, error) from error
        return dict(_layers_on_disk(skeleton, "", str(self.device)))


def _layers_on_disk(module: nn.Module, path: str, device: str) -> Iterator[tuple[str, str]]:
    """A device map with decoder layers on disk, and everything else on the device."""
    if _is_layer(path):
        yield path, "disk"
        return
    if not any(_is_layer(f"{path}.{name}") for name, _ in module.named_modules()):
        yield path, device
        return
    prefix = f"{path}." if path else ""
    for name, _ in module.named_parameters(recurse=False):
        yield f"{prefix}{name}", device
    for name, child in module.named_children():
        yield from _layers_on_disk(child, f"{prefix}{name}", device)


def _is_layer(path: str) -> bool:
    found = LAYER_INDEX.search(path)
    return found is not None and found.end() == len(path)


def _keep_routers(model: nn.Module) -> None:
    """Keep the routers' weights in memory."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    for router in find_routers(model):
        for module in {router.parent, router.linear, *router.module.modules()}:
            hook = getattr(module, "_hf_hook", None)
            if not isinstance(hook, AlignDevicesHook) or not hook.offload:
                continue
            values = {
                name: hook.weights_map[name].to(hook.execution_device)
                for name, tensor in _own_tensors(module)
                if tensor.is_meta
            }
            remove_hook_from_module(module)
            for name, value in values.items():
                if name in module._parameters:
                    module._parameters[name] = nn.Parameter(value, requires_grad=False)
                else:
                    module._buffers[name] = value
            add_hook_to_module(module, AlignDevicesHook(hook.execution_device))


def _own_tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [
        *module.named_parameters(recurse=False),
        *module.named_buffers(recurse=False),
    ]
