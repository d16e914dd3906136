"""Find the experts of a router, and call one expert as a function of its input.

An expert is called through the model's own module, with a routing that chooses only this expert.
That works for every architecture, and closed forms are verified against it. Experts of a user's
own model are called through the block that contains router and experts (`models/own_experts.py`).

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

    Attributes:
        router: the router that chooses among them.
        module: the module that computes them, or the block that contains their two layers.
        form: how the module is called. "routed": with x, indices and weights; "stacked": with one
            copy of x per expert, already scaled; "sorted": with tokens sorted by expert, through
            two layers of the block; "list": one module per expert; "block": a user's block, through
            `call_expert`.
        experts: number of experts with weights; experts without weights (if any) come after them.
        problem: why the experts are not functions of a single token; then only their inputs are
            measured.
        members: the modules of the experts, if each has its own.
        stacked: names of parameters of a user's block with one row per expert.
        call_expert: for "block", a function of the expert's number and tokens.
        renormalised: whether the block divides the chosen weights by their sum.
    """

    router: Router
    module: nn.Module
    form: str
    experts: int
    problem: str | None = None
    members: tuple[nn.Module, ...] | None = None
    stacked: tuple[str, ...] = ()
    call_expert: Callable[[int, torch.Tensor], torch.Tensor] | None = None
    renormalised: bool = False

    @property
    def scales_input(self) -> bool:
        """Whether the router's weight multiplies an expert's input instead of its output."""
        return self.form == "stacked"

    @property
    def input_module(self) -> nn.Module | None:
        """The module whose first argument is the experts' input; None if that is the router's."""
        return self.module if self.form == "routed" else None

    def call(self, expert: int, x_ND: torch.Tensor) -> torch.Tensor:
        """f_e(x) by the model's own code, in the model's dtype, shape (N, O)."""
        if not len(x_ND):  # modules return different shapes for no token
            return self.call(expert, x_ND.new_zeros(1, x_ND.shape[1]))[:0]
        if self.call_expert is not None:
            return self.call_expert(expert, x_ND)
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
        # Two slots, the second with weight 0: some modules do not accept a single slot.
        index_N2 = torch.full((len(x_ND), 2), expert, device=x_ND.device)
        weights_N2 = torch.tensor([1.0, 0.0], device=x_ND.device).to(x_ND).expand(len(x_ND), 2)
        return self.module(x_ND, index_N2, weights_N2).reshape(len(x_ND), -1)


def find_experts(model: nn.Module, router: Router) -> ExpertBlock | None:
    """Find the experts of a router: beside the router, or beside the module that contains it.

    Returns:
        None if no module of experts was found.
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
    """The modules in a ModuleList or ModuleDict, in the order of their numbers; else None."""
    if isinstance(module, nn.ModuleList):
        return tuple(module)
    if not isinstance(module, nn.ModuleDict):
        return None
    numbered = [(int(n[0]), child) for name, child in module.items()
                if (n := re.findall(r"\d+$", name))]  # fmt: skip
    return tuple(child for _, child in sorted(numbered, key=lambda entry: entry[0])) or None
