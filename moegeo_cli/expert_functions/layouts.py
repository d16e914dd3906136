"""Candidates for the layout of experts' weights, in transformers' models and in users' own models.

Legend: D width of the input, O of the output, F inner neurons, R rows of the inward map (2F with
a gate), E experts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.expert_functions.blocks import ExpertBlock

Inner = Callable[[torch.Tensor], torch.Tensor]
# Tried on experts whose activation is not an attribute of a module; the comparison of
# `open_experts` rejects the wrong ones.
COMMON: Mapping[str, Inner] = {
    "SiLU": F.silu,
    "GELU": F.gelu,
    "GELU by tanh": partial(F.gelu, approximate="tanh"),
    "ReLU": F.relu,
    "squared ReLU": lambda pre: F.relu(pre).square(),
}


@dataclass(frozen=True, slots=True)
class Stack:
    """A matrix (or a bias) of every expert, as views of the model's parameters.

    `source` is indexed by expert. `transposed` says that the stored matrices are transposed.
    """

    source: Any
    transposed: bool = False

    def __getitem__(self, expert: int) -> torch.Tensor:
        found: torch.Tensor = self.source[expert]
        return found.T if self.transposed else found

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one expert's matrix."""
        source = self.source
        own = tuple(source[0].shape) if isinstance(source, list) else tuple(source.shape[1:])
        return own[::-1] if self.transposed else own

    @property
    def in_memory(self) -> bool:
        """Whether the values of all experts are in memory; else they are read expert by expert."""
        return isinstance(self.source, list | torch.Tensor)

    def transpose(self) -> Stack:
        """The stack with transposed matrices."""
        return Stack(self.source, not self.transposed)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an expert's weights are in a module, and the inner function between them.

    `inward` is one stack of (R, D), or two if gate and up are separate; `bias_in` has as many
    biases or none. `outward` is a stack of (O, F). `interleaved` says that the rows of gate and up
    alternate.
    """

    inward: tuple[Stack, ...]
    bias_in: tuple[Stack, ...]
    outward: Stack
    bias_out: Stack | None
    inner: Inner
    interleaved: bool
    name: str

    @property
    def neurons(self) -> int:
        """Number of inner neurons, F."""
        return self.outward.shape[1]

    @property
    def gated(self) -> bool:
        """Whether each neuron has a gate."""
        return sum(stack.shape[0] for stack in self.inward) == 2 * self.neurons

    @property
    def stacks(self) -> list[Stack]:
        """All stacks of the layout."""
        last = [] if self.bias_out is None else [self.bias_out]
        return [*self.inward, *self.bias_in, self.outward, *last]

    def rows(self, expert: int) -> list[torch.Tensor]:
        """Views of W_i of an expert, each (F, D): gate and up, or one matrix without a gate."""
        return self._roles(self.inward, expert)

    def bias_rows(self, expert: int) -> list[torch.Tensor]:
        """Views of b_i of an expert, in the same order as `rows`; empty without biases."""
        return self._roles(self.bias_in, expert)

    def _roles(self, stacks: tuple[Stack, ...], expert: int) -> list[torch.Tensor]:
        if len(stacks) != 1 or not self.gated:
            return [stack[expert] for stack in stacks]
        whole = stacks[0][expert]
        if self.interleaved:
            return [whole[::2], whole[1::2]]
        return [whole[: self.neurons], whole[self.neurons :]]


def possible_layouts(block: ExpertBlock, width: int) -> Iterator[Layout]:
    """Closed forms that a module's parameters could have. The caller must verify them.

    Args:
        block: the experts.
        width: D, the width of their inputs.
    """
    for inward, bias_in, outward, bias_out in _arrangements(block):
        for inner, interleaved, gated, name in _inner_functions(block):
            for flips in itertools.product((False, True), repeat=len(inward) + 1):
                pairs = zip((*inward, outward), flips, strict=True)
                *ins, out = (stack.transpose() if flip else stack for stack, flip in pairs)
                rows = sum(stack.shape[0] for stack in ins)
                neurons = out.shape[1] * (2 if gated else 1)
                if rows == neurons and all(stack.shape[1] == width for stack in ins):
                    yield Layout(tuple(ins), bias_in, out, bias_out, inner, interleaved, name)


# Inward maps, their biases, the outward map, its bias.
Arrangement = tuple[tuple[Stack, ...], tuple[Stack, ...], Stack, Stack | None]


def _arrangements(block: ExpertBlock) -> Iterator[Arrangement]:
    """Possible assignments of an expert's matrices to the inward and outward maps."""
    if block.members is None and block.form != "block":
        yield from _by_name(block)
        return
    matrices, biases = _by_shape(block)
    for names in itertools.permutations(matrices):
        if len(names) not in (2, 3):
            return
        *ins, out = names
        stacks = tuple(matrices[name] for name in ins)
        own = [biases[name] for name in ins if name in biases]
        if len(own) in (0, len(ins)):
            yield stacks, tuple(own), matrices[out], biases.get(out)


def _by_shape(block: ExpertBlock) -> tuple[dict[str, Stack], dict[str, Stack]]:
    """The experts' matrices by name, and the biases of the matrices that have one."""
    if block.members is not None:
        tables = [dict(member.named_parameters()) for member in block.members]
        found = {name: Stack([table[name] for table in tables]) for name in tables[0]}
    else:
        named = dict(block.module.named_parameters())
        found = {name: Stack(named[name]) for name in block.stacked}
    matrices = {name: stack for name, stack in found.items() if len(stack.shape) == 2}
    biases = {name: stack for name, stack in found.items() if len(stack.shape) == 1}
    return matrices, {
        name: bias
        for name in matrices
        for other, bias in biases.items()
        if other in _bias_names(name)
    }


def _bias_names(weight: str) -> tuple[str, ...]:
    """Possible names of the bias of a weight."""
    start, _, last = weight.rpartition(".")
    if last == "weight":
        return (f"{start}.bias",)
    return (f"{weight}_bias", f"{weight}_b", weight.replace("weight", "bias"),
            f"{start}.b{last[1:]}".lstrip("."), f"{start}.bias_{last}".lstrip("."))  # fmt: skip


def _by_name(block: ExpertBlock) -> Iterator[Arrangement]:
    """Layouts by the parameter names of transformers' expert modules."""
    module = block.module
    named: dict[str, Any] = dict(module.named_parameters())
    named |= {n: v for n, v in vars(module).items() if getattr(v, "ndim", 0) == 3}
    if block.form == "sorted":
        yield (
            (Stack(named["input_linear.weight"]),), (), Stack(named["output_linear.weight"]), None,
        )  # fmt: skip
        return
    if {"mlp.w1", "mlp.v1", "mlp.w2"} <= named.keys():  # stacked along one dimension
        w1, v1, w2 = (
            Stack(named[f"mlp.{n}"].unflatten(0, (block.experts, -1))) for n in ("w1", "v1", "w2")
        )
        yield (w1, v1), (), w2, None
        return
    first = next((n for n in ("gate_up_proj", "up_proj") if n in named), None)
    if first is None or "down_proj" not in named:
        return
    names = ("gate_proj", "up_proj") if first == "up_proj" and "gate_proj" in named else (first,)
    if any(named[name].ndim != 3 for name in (*names, "down_proj")):
        return
    bias_in = tuple(Stack(named[f"{n}_bias"]) for n in names if f"{n}_bias" in named)
    bias_out = named.get("down_proj_bias")
    yield (
        tuple(Stack(named[name]) for name in names), bias_in, Stack(named["down_proj"]),
        None if bias_out is None else Stack(bias_out),
    )  # fmt: skip


def _inner_functions(block: ExpertBlock) -> Iterator[tuple[Inner, bool, bool, str]]:
    """Inner functions that experts could have, the module's own gating first.

    Yields:
        The function, whether gate and up rows alternate, whether there is a gate, and a name.
    """
    module = block.members[0] if block.members is not None else block.module
    own = getattr(module, "_apply_gate", None)
    act = _activation(module)
    label = type(act).__name__ if act is not None else "own gate"
    if own is not None and getattr(module, "has_gate", True):
        for interleaved in (not getattr(module, "is_concatenated", True), False):
            yield own, interleaved, True, f"gated {label}"
    known: dict[str, Inner] = {} if act is None else {label: act}
    if block.members is not None or block.form == "block":
        known |= COMMON
    for name, function in known.items():
        yield partial(_gate, function), False, True, f"gated {name}"
        yield function, False, False, name


def _gate(act: Inner, pre: torch.Tensor) -> torch.Tensor:
    gate, up = pre.chunk(2, dim=-1)
    return act(gate) * up


def _activation(module: nn.Module) -> Inner | None:
    """The activation that a module or one of its children has as an attribute; None without one."""
    holders: Sequence[nn.Module] = [module, *module.children()]
    names = ("act_fn", "activation_fn", "activation", "act")
    kept = (getattr(holder, name, None) for holder in holders for name in names)
    return next((f for f in kept if callable(f)), None)
