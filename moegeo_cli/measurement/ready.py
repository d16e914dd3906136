"""A model that is ready to be replayed: its routers found, and those that are asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.batches import carries_state
from moegeo_cli.replay.routers import Router, find_routers


@dataclass(frozen=True, slots=True)
class Ready:
    """A model with its routers, those asked for among them, and whether padding would change it."""

    model: nn.Module
    routers: list[Router]
    asked: list[Router]
    stateful: bool


def prepare(model: nn.Module, architecture: Architecture, layers: Sequence[int] | None) -> Ready:
    """Find a model's routers, and those in the layers that are asked for.

    Raises:
        UnsupportedArchitectureError: none there, or a scoring that is not known.
    """
    routers = find_routers(model)
    asked = [r for r in routers if layers is None or r.layer in layers]
    lacking = sorted(set(layers or ()) - {r.layer for r in routers})
    if not asked or lacking:
        where = f"layer {', '.join(map(str, lacking[:8]))}" if lacking else "the model"
        raise UnsupportedArchitectureError(
            f"no router is in {where}",
            found=f"routers in layers {sorted({r.layer for r in routers})}",
            hint="choose --layers among these",
        )
    if architecture.scoring is None:
        raise UnsupportedArchitectureError(
            f"the scoring function of {architecture.model_type} is not known",
            hint="report this model type, with its config.json",
        )
    return Ready(model, routers, asked, carries_state(model))


def digest(routers: Sequence[Router]) -> str:
    """A hash of the routers' weights: ranks that read other files have another."""
    found = hashlib.sha256()
    for router in routers:
        weight = router.weight_ED.detach().cpu().contiguous()
        found.update(weight.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
