"""Read a router call: its input, its logits, and which experts it selected with which weights.

Logits are taken from the output of the router's weight, so they are raw and on the gradient path.
The selected experts and their weights are read from the router's output (`choices.py`).

Legend: N tokens, D router input width, E experts, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.choices import output_parts, read_choice, unreadable_error
from moegeo_cli.routers.finding import Router

# Largest allowed difference of two computations of the logits, relative to the largest logit.
AGREEMENT, AGREEMENT_HALF = 1e-4, 0.05


@dataclass(frozen=True, slots=True)
class RouterCall:
    """One call of a router; rows are tokens.

    Attributes:
        x_ND: the input of the router's weight (times the router's scale).
        logits_NE: the raw logits, on the gradient path.
        weights_NK: the combine weights.
        selected_NK: the selected experts.
        observed: whether choice and weights were read from the model; otherwise they were computed
            from the logits.
        given: the tensor of combine weights in the router's output, on the gradient path; None if
            there is none.
    """

    x_ND: torch.Tensor
    logits_NE: torch.Tensor
    weights_NK: torch.Tensor
    selected_NK: torch.Tensor
    observed: bool = True
    given: torch.Tensor | None = None


Given = tuple[Any, ...]  # arguments of a call: positional, then keyword arguments


class RouterTap:
    """Hooks on one router that report each of its calls.

    Args:
        router: the router.
        take: called with every call, inside the hook of the router's module.
        partial: whether calls whose choice cannot be read are reported too, without a choice.
        fault: called with any error in a hook; None to raise it in the model's forward pass.
    """

    def __init__(
        self,
        router: Router,
        take: Callable[[RouterCall], None],
        *,
        partial: bool = False,
        fault: Callable[[Exception], None] | None = None,
    ) -> None:
        self.router, self.take, self.partial, self.fault = router, take, partial, fault
        self._product: tuple[torch.Tensor, torch.Tensor] | None = None
        hook = self._guarded(self._on_router)
        self._handles = [router.module.register_forward_hook(hook, with_kwargs=True)]
        if router.linear is not router.module:
            hook = self._guarded(self._on_linear)
            self._handles.append(router.linear.register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _guarded(self, hook: Callable[[Given, Any], None]) -> Callable[..., None]:
        def call(module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any) -> None:
            try:
                hook((*args, *kwargs.values()), output)
            except Exception as error:
                if self.fault is None:
                    raise
                self.fault(error)

        return call

    def _on_linear(self, given: Given, output: Any) -> None:
        self._product = (_first_tensor(self.router, given), output)

    def _on_router(self, given: Given, output: Any) -> None:
        if self._product is None:  # the router module computes its logits itself
            x, logits = _first_tensor(self.router, given), _own_logits(self.router, output)
        else:
            x, logits = self._product
            self._product = None
        if self.router.scale != 1.0:  # scaling the product is the same as scaling its input
            x = x.to(logits.dtype) * self.router.scale
        logits_NE = logits if logits.ndim == 2 else logits.reshape(-1, logits.shape[-1])
        try:
            selected, weights, observed = read_choice(self.router, output, logits_NE)
        except UnsupportedArchitectureError:
            if not self.partial:
                raise
            weights = logits_NE.detach()[:, :0]
            selected, observed = weights.long(), False
        handed = _weights_on_gradient_path(output, weights.numel())
        self.take(
            RouterCall(x.reshape(-1, x.shape[-1]), logits, weights, selected, observed, handed)
        )


def _first_tensor(router: Router, given: Given) -> torch.Tensor:
    """The router's input: the first floating-point tensor among its arguments.

    Raises:
        UnsupportedArchitectureError: there is none.
    """
    tensors = [a for a in given if isinstance(a, torch.Tensor) and a.ndim]
    found = next((t for t in tensors if t.is_floating_point()), None)
    if found is None:
        raise UnsupportedArchitectureError(
            f"the router {router.path} ({type(router.module).__name__}) is given no tensor of "
            "floating-point numbers",
            found=", ".join(type(a).__name__ for a in given) or "no argument",
            hint="name the module that takes the hidden states with --router or router=",
        )
    return found


def _own_logits(router: Router, output: Any) -> torch.Tensor:
    """The logits in the output of a router module that computes them itself.

    They are the first output of width E, or the second of two if the first are masked scores.
    """
    if isinstance(output, torch.Tensor):
        return output
    wide = [
        part
        for part in output_parts(output)
        if isinstance(part, torch.Tensor)
        and part.is_floating_point()
        and part.ndim
        and part.shape[-1] == router.experts
    ]
    if not wide:
        raise unreadable_error(router, output)
    return wide[-1] if len(wide) == 2 and _has_zeros(wide[0]) else wide[0]


def _weights_on_gradient_path(output: Any, slots: int) -> torch.Tensor | None:
    """The tensor of combine weights in a router's output, if it is on the gradient path.

    Args:
        output: the router's output.
        slots: number of weights that were read from it.
    """
    if not isinstance(output, tuple):
        return None
    floats = [
        part for part in output[1:]
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.requires_grad
    ]  # fmt: skip
    return next((part for part in floats if part.numel() == slots), None)


def _has_zeros(scores_NE: torch.Tensor) -> bool:
    """Whether these are scores with zeros for unselected experts."""
    return bool((scores_NE == 0).any())


def verify_call(router: Router, call: RouterCall) -> str | None:
    """Recompute the logits from the router's input and weight, and compare.

    The product is also tried in the dtype of the logits, because some routers compute in float32.

    Returns:
        None if the logits agree up to rounding, else what is wrong.
    """
    logits = call.logits_NE.detach().reshape(-1, call.logits_NE.shape[-1])
    if logits.shape[-1] != router.experts:
        return f"{logits.shape[-1]} logits for {router.experts} experts"
    weight = router.weight_ED.detach()[: router.experts]
    if weight.shape[1] != call.x_ND.shape[-1]:
        return f"inputs of width {call.x_ND.shape[-1]} for a weight of {weight.shape[1]}"
    if not torch.isfinite(logits).all():
        return None  # non-finite logits are a finding, not a reading error
    narrow = min(call.x_ND.dtype.itemsize, logits.dtype.itemsize, weight.dtype.itemsize)
    scale = float(logits.abs().max().clamp_min(1e-30))
    for dtype in {weight.dtype, logits.dtype}:
        bias = router.bias_E.to(dtype) if router.bias_E is not None else None
        again = F.linear(call.x_ND.detach().to(dtype), weight.to(dtype), bias)
        error = float((again.float() - logits.float()).abs().max())
        if error <= scale * (AGREEMENT if narrow >= 4 else AGREEMENT_HALF):
            return None
    return f"logits do not equal the router's weight times its input (off by {error / scale:.2g})"
