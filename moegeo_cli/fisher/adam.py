r"""Adam's second moment of the router rows: a free and rough Fisher.

:math:`\hat v = v / (1 - \beta_2^t)` is a running mean of squared gradients of the
training loss, averaged over a batch and with clipping and auxiliary losses baked in. Its
scale is not that of the other kinds; only scale-free forms compare, and those roughly.

An optimizer file stores no names. The order of parameters is rebuilt as the transformers
Trainer builds it (weight-decayed parameters first) or as a plain optimizer would, and is
believed only if the sizes of the groups and every shape agree. Failing that (a script with
groups of its own), routers are known by a shape that no other parameter has, in one group.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.errors import IncompleteCheckpointError, ShapeError, UnsafeFileError

# Parameters that the Trainer leaves out of weight decay, by name.
UNDECAYED = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)", re.IGNORECASE)


def adam_second_moments(path: Path, model: nn.Module, routers: list[str]) -> list[np.ndarray]:
    """Bias-corrected second moments of router rows.

    Args:
        path: `optimizer.pt` of the checkpoint.
        model: the model, for the names, order and shapes of its parameters.
        routers: names of the router weight parameters.

    Returns:
        One float64 array (E, D) a router, in squared gradients of the training loss.

    Raises:
        IncompleteCheckpointError: no optimizer state in the checkpoint.
        UnsafeFileError: the file holds more than tensors and plain values.
        ShapeError: the states cannot be assigned to the parameters without doubt.
    """
    state = _read(path)
    names = _match(state, model, routers)
    moments = []
    for router in routers:
        entry = state["state"].get(names[router])
        if not entry or "exp_avg_sq" not in entry:
            raise ShapeError(
                f"{path.name}: no second moment for {router}", found="not an Adam state"
            )
        beta2 = next(
            float(group["betas"][1])
            for group in state["param_groups"]
            if names[router] in group["params"]
        )
        step = float(entry["step"])
        moments.append(entry["exp_avg_sq"].double().numpy() / (1.0 - beta2**step))
    return moments


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise IncompleteCheckpointError(
            f"{path.parent.name} has no optimizer state",
            found="no optimizer.pt",
            hint="use --fisher empirical, or save checkpoints with save_only_model=False",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UnsafeFileError(
            f"{path.name} cannot be read as plain tensors, and is refused",
            found=type(error).__name__,
            hint="use --fisher empirical",
        ) from None
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        raise ShapeError(f"{path.name} is not an optimizer state", found=type(state).__name__)
    return state


def _match(state: dict[str, Any], model: nn.Module, routers: list[str]) -> dict[str, int]:
    """Parameter name -> index in the optimizer state."""
    indices = [index for group in state["param_groups"] for index in group["params"]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    parameters = dict(model.named_parameters())
    norms = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    }
    decayed = [n for n in parameters if not UNDECAYED.search(n) and n not in norms]
    rest = [n for n in parameters if n not in set(decayed)]
    for groups in ([decayed, rest], [list(parameters)]):
        if sizes != [len(group) for group in groups if group]:
            continue
        order = [name for group in groups for name in group]
        if all(
            tuple(state["state"][index]["exp_avg_sq"].shape) == tuple(parameters[name].shape)
            for name, index in zip(order, indices, strict=True)
            if index in state["state"]
        ):
            return dict(zip(order, indices, strict=True))
    found = _match_by_shape(state, parameters, routers)
    if found is not None:
        return found
    raise ShapeError(
        "the optimizer's states cannot be assigned to the model's parameters",
        found=f"groups of {sizes} states for {len(parameters)} parameters",
        hint="use --fisher empirical",
    )


def _match_by_shape(
    state: dict[str, Any], parameters: dict[str, nn.Parameter], routers: list[str]
) -> dict[str, int] | None:
    """Router -> index in the state, if routers have unique shapes and a certain order."""
    matched: dict[str, int] = {}
    for shape in {tuple(parameters[router].shape) for router in routers}:
        names = [n for n, p in parameters.items() if tuple(p.shape) == shape]
        groups = [
            [i for i in group["params"] if _shape(state, i) == shape]
            for group in state["param_groups"]
        ]
        [indices, *more] = [group for group in groups if group] or [[]]
        if more or len(indices) != len(names) or not set(names) <= set(routers):
            return None
        matched |= dict(zip(names, indices, strict=True))
    return matched


def _shape(state: dict[str, Any], index: int) -> tuple[int, ...] | None:
    moment = state["state"].get(index, {}).get("exp_avg_sq")
    return None if moment is None else tuple(moment.shape)
