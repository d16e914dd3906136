"""The experts of a router: the module that computes them, and each expert as a function of x.

An expert is asked for by calling the model's own module with a routing that chooses it alone,
whatever the architecture: what a closed form says is held to that. A user's own model is asked
through the block that holds router and experts (`own_experts.py`).

Legend: N tokens, D width of an expert's input, O of its output, E experts.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moegeo_cli.routers.finding import EXPERTS_CLASS, Router

ATTENTION = "attention experts: what they compute depends on the other tokens of a sequence"


@dataclass(frozen=True, slots=True)
class ExpertBlock:
    """One router's experts.

    `module` computes them, or is the block that holds their two layers. `form` says how it is
    called: "routed" (x, indices, weights), "stacked" (each expert's copy of x, already scaled),
    "sorted" (tokens by expert through two layers of the block), "list" (a module each) or "block"
    (a user's block, through `ask`). `experts` counts those that do work: experts without any stand
    behind them. `problem` says why they are not functions of one token, and then nothing but what
    they are given is measured. `members` are the modules of the experts, where each has its own;
    `stacked` the parameters that hold a row of a user's block an expert. `renormalised`: the block
    divides the weights that its router's scores give by their sum.
    """

    router: Router
    module: nn.Module
    form: str
    experts: int
    problem: str | None = None
    members: tuple[nn.Module, ...] | None = None
    stacked: tuple[str, ...] = ()
    ask: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    renormalised: bool = False

    @property
    def scales_input(self) -> bool:
        """Whether the router's weight multiplies an expert's input instead of its output."""
        return self.form == "stacked"

    @property
    def input_module(self) -> nn.Module | None:
        """The module whose first argument is the experts' input; None where it is the router's."""
        return self.module if self.form == "routed" else None

    def call(self, expert: int, x_ND: torch.Tensor) -> torch.Tensor:
        """f_e(x), by the model's own code and in its own dtype: shape (N, O)."""
        if not len(x_ND):  # modules disagree on what nothing gives
            return self.call(expert, x_ND.new_zeros(1, x_ND.shape[1]))[:0]
        if self.ask is not None:
            return self.ask(expert, x_ND)
        if self.form == "list":
            assert self.members is not None
            return self.members[expert](x_ND)
        if self.form == "stacked":
            slots = [torch.zeros_like(x_ND)] * self.experts
            slots[expert] = x_ND
            return self.module(torch.cat(slots)).reshape(self.experts, len(x_ND), -1)[expert]
        if self.form == "sorted":
            sizes = [len(x_ND) if e == expert else 0 for e in range(self.experts)]
            holder: Any = self.module
            gate, up = holder.input_linear(x_ND, sizes).chunk(2, dim=-1)
            return holder.output_linear(holder.activation(gate) * up, sizes)
        # Two slots, the second without weight: some modules cannot take a single one.
        index_N2 = torch.full((len(x_ND), 2), expert, device=x_ND.device)
        weights_N2 = torch.tensor([1.0, 0.0], device=x_ND.device).to(x_ND).expand(len(x_ND), 2)
        return self.module(x_ND, index_N2, weights_N2).reshape(len(x_ND), -1)


def find_experts(model: nn.Module, router: Router) -> ExpertBlock | None:
    """The experts that a router chooses among. None if no module of them was found.

    They stand beside the router, or beside a module that holds it.
    """
    modules = dict(model.named_modules())
    path = router.path
    for _ in range(2):
        path = path.rpartition(".")[0]
        holder = modules[path]
        children = dict(holder.named_children())
        if {"input_linear", "output_linear"} <= children.keys():
            count = int(children["input_linear"].weight.shape[0])
            problem = ATTENTION if not hasattr(holder, "activation") else None
            return ExpertBlock(router, holder, "sorted", count, problem)
        for name, child in children.items():
            if name == "experts" or EXPERTS_CLASS.search(type(child).__name__):
                return _describe(router, child)
    return None


def _describe(router: Router, module: nn.Module) -> ExpertBlock:
    members = list_members(module)
    if members is not None:
        count = min(len(members), router.experts)
        return ExpertBlock(router, module, "list", count, members=members[:count])
    stacks = [p for p in module.parameters() if p.ndim == 3]
    count = min((int(p.shape[0]) for p in stacks), default=router.experts)
    arguments = len(inspect.signature(module.forward).parameters)
    form = "routed" if arguments >= 3 else "stacked"
    return ExpertBlock(router, module, form, min(count, router.experts))


def list_members(module: nn.Module) -> tuple[nn.Module, ...] | None:
    """The experts of a list or a dictionary of modules, in the order of their numbers."""
    if isinstance(module, nn.ModuleList):
        return tuple(module)
    if not isinstance(module, nn.ModuleDict):
        return None
    numbered = [(int(n[0]), child) for name, child in module.items()
                if (n := re.findall(r"\d+$", name))]  # fmt: skip
    return tuple(child for _, child in sorted(numbered, key=lambda entry: entry[0])) or None
