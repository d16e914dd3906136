"""Where the weights of experts lie in a module: the layouts that transformers' models use.

Legend: D width of the input, O of the output, F inner neurons, R rows of the inward map (2F with
a gate), E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from moegeo_cli.replay.expert_blocks import ExpertBlock

Inner = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an expert's weights lie in a module, and which inner function joins them.

    `inward` are stacks of (R, D) by expert, one or, gate and up apart, two; `outward` a stack of
    (O, F). `interleaved`: gate and up rows alternate. All are views of the live parameters.
    """

    inward: tuple[torch.Tensor, ...]
    bias_ER: torch.Tensor | None
    outward: torch.Tensor
    bias_EO: torch.Tensor | None
    inner: Inner
    interleaved: bool
    name: str

    @property
    def neurons(self) -> int:
        """F."""
        return int(self.outward.shape[2])

    @property
    def gated(self) -> bool:
        """Whether each neuron has a gate beside its own row."""
        return sum(int(part.shape[1]) for part in self.inward) == 2 * self.neurons

    def rows(self, expert: int) -> list[torch.Tensor]:
        """Views of W_i by role, each (F, D): gate and up, or the one that there is."""
        if len(self.inward) == 2 or not self.gated:
            return [part[expert] for part in self.inward]
        whole = self.inward[0][expert]
        if self.interleaved:
            return [whole[::2], whole[1::2]]
        return [whole[: self.neurons], whole[self.neurons :]]

    def bias_rows(self, expert: int) -> list[torch.Tensor]:
        """Views of b_i by the same roles; empty without biases."""
        if self.bias_ER is None:
            return []
        whole = self.bias_ER[expert]
        if not self.gated:
            return [whole]
        if self.interleaved:
            return [whole[::2], whole[1::2]]
        return [whole[: self.neurons], whole[self.neurons :]]


def possible_layouts(block: ExpertBlock, width: int) -> Iterator[Layout]:
    """Closed forms that a module's parameters could have; which one it has is for others to prove.

    Args:
        block: the experts.
        width: of their inputs.
    """
    stacks = _stacks(block)
    if stacks is None:
        return
    inward, outward, biases = stacks
    for inner, interleaved, name in _inner_functions(block.module):
        for turned in (False, True):
            ins = tuple(p.transpose(1, 2) if turned else p for p in inward)
            for out_turned in (turned, not turned):
                out = outward.transpose(1, 2) if out_turned else outward
                rows = sum(int(p.shape[1]) for p in ins)
                neurons = int(out.shape[2])
                if all(p.shape[2] == width for p in ins) and rows in (neurons, 2 * neurons):
                    yield Layout(ins, biases[0], out, biases[1], inner, interleaved, name)


Stacks = tuple[
    tuple[torch.Tensor, ...], torch.Tensor, tuple[torch.Tensor | None, torch.Tensor | None]
]


def _stacks(block: ExpertBlock) -> Stacks | None:
    """Stacks of the inward and outward maps by expert, and their biases."""
    named = dict(block.module.named_parameters())
    if block.form == "sorted":
        return (named["input_linear.weight"],), named["output_linear.weight"], (None, None)
    if {"mlp.w1", "mlp.v1", "mlp.w2"} <= named.keys():  # stacked along one dimension
        w1, v1, w2 = (
            named[f"mlp.{n}"].unflatten(0, (block.experts, -1)) for n in ("w1", "v1", "w2")
        )
        return (w1, v1), w2, (None, None)
    first = next((n for n in ("gate_up_proj", "up_proj") if n in named), None)
    if first is None or "down_proj" not in named:
        return None
    inward: tuple[torch.Tensor, ...] = (named[first],)
    if first == "up_proj" and "gate_proj" in named:
        inward = (named["gate_proj"], named["up_proj"])
    if any(p.ndim != 3 for p in (*inward, named["down_proj"])):
        return None
    return inward, named["down_proj"], (named.get(f"{first}_bias"), named.get("down_proj_bias"))


def _inner_functions(module: nn.Module) -> Iterator[tuple[Inner, bool, str]]:
    """Inner functions that a module could have: its own rule of gating first."""
    own = getattr(module, "_apply_gate", None)
    holders = [module, *module.children()]
    names = ("act_fn", "activation_fn", "activation", "act")
    act = next((f for h in holders for n in names if callable(f := getattr(h, n, None))), None)
    label = type(act).__name__ if act is not None else "own gate"
    if own is not None and getattr(module, "has_gate", True):
        for interleaved in (not getattr(module, "is_concatenated", True), False):
            yield own, interleaved, f"gated {label}"
    if act is not None:

        def gated(pre: torch.Tensor) -> torch.Tensor:
            gate, up = pre.chunk(2, dim=-1)
            return act(gate) * up

        yield gated, False, f"gated {label}"
        yield act, False, label
