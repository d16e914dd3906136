"""Run a user's MoE block for one expert, by forcing its router to choose only that expert.

Legend: N tokens, D width of the block's input, O of its output, E experts, K chosen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from moegeo_cli.routers.finding import Router
from moegeo_cli.scorings import find_scoring

FAR = 1e4  # a logit that decides the choice; it is representable in float16
UNREADABLE = "its router's output cannot be made to choose one expert"
NO_TENSOR = "it returns no tensor of its input's form"


class CannotIsolateExpert(Exception):  # noqa: N818 - an answer, not an error
    """Raised if a block cannot be run for a single expert; the message is the reason."""


class SingleExpertBlock:
    """A block that can be called for a single expert.

    Args:
        router: the router of the block.
        block: the module that contains the router and the experts.
        own: names of the experts' parameters, each with its expert, or None if rows are experts.
        ndim: number of dimensions of the block's input; 3 for (batch, positions, D).
    """

    def __init__(
        self, router: Router, block: nn.Module, own: Mapping[str, int | None], ndim: int
    ) -> None:
        self.router, self.block, self.own, self.ndim = router, block, own, ndim
        self.has_shared_output = False

    def __call__(self, expert: int, x_ND: torch.Tensor) -> torch.Tensor:
        """f_e(x), shape (N, O)."""
        with self._forced_choice(expert):
            found = self.block_output(x_ND)
        return found - self.shared_output(expert, x_ND) if self.has_shared_output else found

    def shared_output(
        self, expert: int, x_ND: torch.Tensor, *, alone: bool = False
    ) -> torch.Tensor:
        """The part of the block's output that comes from no routed expert, (N, O).

        It is the output with the experts' parameters set to zero.

        Args:
            expert: the expert that is chosen.
            x_ND: tokens.
            alone: set only this expert's parameters to zero, which must give the same output.
        """
        named = dict(self.block.named_parameters())
        zeros = {}
        for name, whose in self.own.items():
            if alone and whose is None:
                zeros[name] = named[name].detach().clone()
                zeros[name][expert] = 0.0
            elif not alone or whose == expert:
                zeros[name] = torch.zeros_like(named[name][:1]).expand_as(named[name])
        with self._forced_choice(expert):
            return self.block_output(x_ND, zeros)

    def block_output(
        self, x_ND: torch.Tensor, parameters: Mapping[str, torch.Tensor] | None = None
    ) -> torch.Tensor:
        """The block's output for tokens, each as a sequence of its own, shape (N, O)."""
        x = x_ND.reshape(len(x_ND), *[1] * (self.ndim - 2), x_ND.shape[1])
        found = functional_call(self.block, dict(parameters or {}), (x,))
        first = first_output(found, len(x_ND))
        if first is None:
            raise CannotIsolateExpert(NO_TENSOR)
        return first.reshape(len(x_ND), -1)

    @contextlib.contextmanager
    def _forced_choice(self, expert: int) -> Iterator[None]:
        handle = self.router.module.register_forward_hook(partial(self._force_choice, expert))
        try:
            yield
        finally:
            handle.remove()

    def _force_choice(self, expert: int, module: nn.Module, args: Any, output: Any) -> Any:
        """Change the router's output so that it chooses only this expert, with weight 1."""
        if isinstance(output, torch.Tensor):
            return self._logits(expert, output)
        parts = list(output) if isinstance(output, tuple) else []
        chosen = [
            p for p in parts if isinstance(p, torch.Tensor)
            and not p.is_floating_point() and p.dtype != torch.bool
        ]  # fmt: skip
        if len(chosen) != 1:
            raise CannotIsolateExpert(UNREADABLE)
        [index] = chosen
        count = index.shape[-1]
        others = [e for e in range(self.router.experts) if e != expert][: count - 1]
        weights = [1.0] + [0.0] * (count - 1)

        def held(part: Any) -> Any:
            if not isinstance(part, torch.Tensor):
                return part
            if part is index:
                return torch.tensor([expert, *others], device=part.device).to(part).expand_as(part)
            if part.shape == index.shape:
                return torch.tensor(weights, device=part.device).to(part).expand_as(part)
            if part.shape[-1] == self.router.experts:
                return self._logits(expert, part)
            return part

        return tuple(held(part) for part in parts)

    def _logits(self, expert: int, like: torch.Tensor) -> torch.Tensor:
        held = torch.full_like(like.detach(), -FAR)
        computed = self.router.choice_scoring
        held[..., expert] = FAR if computed is None else min(find_scoring(computed).unit_logit, FAR)
        return held


def first_output(output: Any, rows: int) -> torch.Tensor | None:
    """The output tensor of a block: its output, or the first tensor in it with this many rows.

    Returns:
        None if there is none.
    """
    parts = output if isinstance(output, tuple | list) else (output,)
    found = (p for p in parts if isinstance(p, torch.Tensor) and p.ndim and len(p) == rows)
    return next(found, None)
