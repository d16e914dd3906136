"""Samples each expert's weights, at the same positions in every model of one shape.

Legend: E experts, W sampled weights of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.expert_functions.blocks import find_experts
from moegeo_cli.replay.forms import form_of
from moegeo_cli.routers.finding import Router

SAMPLED_WEIGHTS = 4096
NO_MODEL = "no model was built, so experts' weights were not read"
NO_EXPERTS = "no weights of experts were found beside the router"


@dataclass(frozen=True, slots=True)
class ExpertSample:
    """Sampled weights of each expert: float32, shape (E, W).

    Two samples are comparable if their `shapes` are equal.
    """

    weights_EW: np.ndarray
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """Where the weights of a router's experts are: in one module per expert, or in stacks.

    Attributes:
        experts: number of experts.
        modules: one module per expert; None for stacks.
        stacks: module and parameter name of each stack. A stack has shape (E, ., .), or is a
            matrix with E blocks of rows.
    """

    experts: int
    modules: nn.ModuleList | None
    stacks: tuple[tuple[nn.Module, str], ...]

    def of(self, expert: int) -> list[torch.Tensor]:
        """The tensors of one expert. A streamed layer must be in memory."""
        if self.modules is not None:
            return [p.detach() for _, p in sorted(self.modules[expert].named_parameters())]
        found = []
        for module, name in self.stacks:
            stack: Any = getattr(module, name)  # if streamed: an object that reads by index
            rows = stack.shape[0] // self.experts
            whole = stack.ndim == 3
            found.append(stack[expert] if whole else stack[expert * rows : (expert + 1) * rows])
        return [part.detach() for part in found]


def find_expert_weights(model: nn.Module, router: Router) -> ExpertWeights | str:
    """Find the weights of a router's experts; or return, as text, why there are none."""
    body = form_of(model).body
    if body is None:
        return NO_MODEL
    block = find_experts(body, router)
    if block is not None and isinstance(block.module, nn.ModuleList):
        return ExpertWeights(block.experts, block.module, ())
    holder = router.parent if block is None else block.module
    experts = router.experts if block is None else block.experts
    stacks = [
        (module, name)
        for _, module in sorted(holder.named_modules())
        for name, p in module.named_parameters(recurse=False)
        if (p.ndim == 3 and p.shape[0] == experts)
        or (block is not None and p.ndim == 2 and p.shape[0] > experts == _divisor(p, experts))
    ]
    return ExpertWeights(experts, None, tuple(stacks)) if stacks else NO_EXPERTS


def sample_weights(weights: ExpertWeights) -> ExpertSample:
    """Sample every expert's weights. The positions depend on the shapes and a fixed seed only."""
    first = weights.of(0)
    ends = np.cumsum([part.numel() for part in first])
    places = np.arange(int(ends[-1]))
    if len(places) > SAMPLED_WEIGHTS:
        generator = np.random.default_rng(0)
        places = np.sort(generator.choice(len(places), SAMPLED_WEIGHTS, replace=False))
    of_part = np.searchsorted(ends, places, side="right")
    rows = []
    for expert in range(weights.experts):
        taken = []
        for number, part in enumerate(weights.of(expert)):
            own = places[of_part == number] - (int(ends[number]) - part.numel())
            flat = part.reshape(-1)[torch.from_numpy(own).to(part.device)]
            taken.append(flat.float().cpu().numpy())
        rows.append(np.concatenate(taken))
    return ExpertSample(np.stack(rows), tuple(tuple(part.shape) for part in first))


def _divisor(parameter: torch.Tensor, experts: int) -> int:
    return experts if parameter.shape[0] % experts == 0 else 0
