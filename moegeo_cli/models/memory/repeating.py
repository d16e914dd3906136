"""Finds layers of a module tree that repeat, so that a few of them stand for all.

Forty-eight equal layers take forty-eight times what one takes. A tree with the first few layers is
traced instead, and what each further period of layers leaves behind is added.

A period is the number of layers after which their kinds repeat: 1 where all are equal, 2 where two
kinds of attention alternate.
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

# What a layer is told of its place. It decides nothing that the kind of a layer does not say.
PLACE = {"layer_idx", "layer_id", "layer_index", "layer_number", "idx", "block_idx"}


@dataclass(frozen=True, slots=True)
class Repeats:
    """A list of layers of which the first ones stand for all.

    `path` is the list's in the tree, `kept` the number of layers that stand for all, `period` the
    number after which kinds repeat, and `left_out` the number of periods that are not kept.
    """

    path: str
    kept: int
    period: int
    left_out: int


def find_repeats(model: nn.Module, routers: Sequence[Router]) -> list[Repeats]:
    """The lists of layers that can be shortened, of those that hold routers.

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
    """How a list with layers of these kinds is shortened; None where nothing is gained.

    Three whole periods are kept beyond the layers that do not repeat. What the first leaves behind
    may be less, since nothing is kept for the way back before the first router; the second and
    third tell what every further one leaves. The last layers are of the same kinds as before.
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
    """A value for each layer; equal ones compute alike."""
    stated = _by_layer(config, len(layers))
    return [(_kind(layer), tuple(values[n] for values in stated)) for n, layer in enumerate(layers)]


def _by_layer(config: Any, total: int) -> list[list[str]]:
    """What a config, or a part of it, says of each layer."""
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", ()))]
    held = [value for part in parts if part is not None for value in vars(part).values()]
    return [
        [repr(item) for item in value]
        for value in held
        if isinstance(value, list | tuple) and len(value) == total
    ]


def _kind(layer: nn.Module) -> Any:
    return tuple(
        (name, type(module), _stated(vars(module)), _tensors(module))
        for name, module in layer.named_modules(remove_duplicate=False)
    )


def _stated(values: dict[str, Any]) -> Any:
    return tuple(
        sorted((name, _plain(v)) for name, v in values.items()
               if not name.startswith("_") and name not in PLACE)
    )  # fmt: skip


def _plain(value: Any) -> str:
    """A value in words; of an object without any, which object it is."""
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {value.dtype}"
    if value is None or isinstance(value, str | int | float | torch.dtype | list | tuple):
        return repr(value)
    return f"{type(value).__name__} {id(value)}"


def _tensors(module: nn.Module) -> Any:
    held = (*module._parameters.items(), *module._buffers.items())
    return tuple((n, None if t is None else (tuple(t.shape), t.dtype)) for n, t in held)
