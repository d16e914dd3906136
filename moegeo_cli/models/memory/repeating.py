"""Find repeated layers of a module tree, so that tracing a few of them is enough.

Tracing all layers of a deep model is slow. If layers repeat, only a copy with the first few is
traced (`activations.py`), and the bytes that one period adds are multiplied by the number of
periods left out. A period is the number of layers after which their kinds repeat: 1 if all layers
are equal, 2 if two kinds of attention alternate.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moegeo_cli.routers.finding import LAYER_INDEX, Router

# Attributes that hold a layer's number. They are ignored when layers are compared.
POSITION_ATTRIBUTES = {"layer_idx", "layer_id", "layer_index", "layer_number", "idx", "block_idx"}


@dataclass(frozen=True, slots=True)
class Repeats:
    """A list of layers that is shortened to its first ones.

    Attributes:
        path: path of the list in the module tree.
        kept: number of layers that are kept.
        period: number of layers after which their kinds repeat.
        left_out: number of periods that are left out.
    """

    path: str
    kept: int
    period: int
    left_out: int


def find_repeats(model: nn.Module, routers: Sequence[Router]) -> list[Repeats]:
    """The lists of layers with routers that can be shortened.

    Args:
        model: the module tree.
        routers: its routers.
    """
    paths = set()
    for router in routers:
        match = LAYER_INDEX.search(router.path)
        if match is not None:
            paths.add(router.path[: match.start(1) - 1])
    found = []
    for path in sorted(paths):
        layers = model.get_submodule(path)
        if isinstance(layers, nn.ModuleList):
            repeats = _shorten(path, _kinds(layers, getattr(model, "config", None)))
            if repeats is not None:
                found.append(repeats)
    return found


def copy_shortened(model: nn.Module, repeats: Sequence[Repeats]) -> nn.Module:
    """A copy of a module tree without the layers that are left out."""
    with contextlib.ExitStack() as stack:
        for one in repeats:
            stack.enter_context(_shortened(model, one))
        return copy.deepcopy(model)


@contextlib.contextmanager
def _shortened(model: nn.Module, repeats: Repeats) -> Iterator[None]:
    owner, _, name = repeats.path.rpartition(".")
    parent, whole = model.get_submodule(owner), model.get_submodule(repeats.path)
    assert isinstance(whole, nn.ModuleList)
    setattr(parent, name, whole[: repeats.kept])
    try:
        yield
    finally:
        setattr(parent, name, whole)


def _shorten(path: str, kinds: Sequence[Any]) -> Repeats | None:
    """How a list of layers of these kinds is shortened; None if it cannot be.

    Kept are the layers that do not repeat and three periods. The first period may leave fewer bytes
    than the others, because no activations are kept for the backward pass before the first router.
    The second and third show what every other period leaves. The last kept layers are of the same
    kinds as the last layers of the whole list.
    """
    total = len(kinds)
    for period in range(1, total // 4 + 1):
        first = total - period
        while first > 0 and kinds[first - 1] == kinds[first - 1 + period]:
            first -= 1
        left_out = (total - first - 3 * period) // period
        if left_out > 0:
            return Repeats(path, total - left_out * period, period, left_out)
    return None


def _kinds(layers: nn.ModuleList, config: Any) -> list[Any]:
    """A value for each layer; layers with equal values differ in their weights only."""
    listed = _config_lists(config, len(layers))
    return [(_kind(layer), tuple(own[n] for own in listed)) for n, layer in enumerate(layers)]


def _config_lists(config: Any, total: int) -> list[list[str]]:
    """Lists in a config, or in a part of it, that have one entry for each layer."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    held = [value for part in parts if part is not None for value in vars(part).values()]
    return [
        [repr(item) for item in value]
        for value in held
        if isinstance(value, list | tuple) and len(value) == total
    ]


def _kind(layer: nn.Module) -> Any:
    return tuple(
        (name, type(module), _attributes(vars(module)), _tensor_forms(module))
        for name, module in layer.named_modules(remove_duplicate=False)
    )


def _attributes(values: dict[str, Any]) -> Any:
    return tuple(
        sorted((name, _comparable(v)) for name, v in values.items()
               if not name.startswith("_") and name not in POSITION_ATTRIBUTES)
    )  # fmt: skip


def _comparable(value: Any) -> str:
    """A text that is equal for equal values; for other objects, equal only for the same object."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if value is None or isinstance(value, str | int | float | torch.dtype | list | tuple):
        return repr(value)
    return f"{type(value).__name__} {id(value)}"


def _tensor_forms(module: nn.Module) -> Any:
    held = (*module._parameters.items(), *module._buffers.items())
    return tuple((n, None if t is None else (tuple(t.shape), t.dtype)) for n, t in held)
