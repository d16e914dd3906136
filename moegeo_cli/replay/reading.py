"""What one forward pass of a router took and gave, in whatever form the router gives it.

Logits are taken where the router's weight makes them, so that they are raw and on the
gradient's path; what was selected, and with which weights, is read from what the router
hands to its experts. Forms are told apart by shape and type, never by a model's name.

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
from moegeo_cli.routers.finding import Router
from moegeo_cli.scorings import find_scoring

# Two computations of one product differ by rounding: share of the largest logit.
AGREEMENT, AGREEMENT_HALF = 1e-4, 0.05


@dataclass(frozen=True, slots=True)
class RouterCall:
    """What one forward pass of a router took and gave, rows being tokens.

    Shapes: x_ND as the router's weight received it (times the router's scale), logits_NE on the
    gradient path, weights_NK and selected_NK as the model goes on to use them, or, where not
    `observed`, as they were computed from the logits. `given` is the tensor of weights that the
    router handed on, which the loss's gradient passes; None where it handed on none.
    """

    x_ND: torch.Tensor
    logits_NE: torch.Tensor
    weights_NK: torch.Tensor
    selected_NK: torch.Tensor
    observed: bool = True
    given: torch.Tensor | None = None


Choice = tuple[torch.Tensor, torch.Tensor]  # selected_NK, weights_NK
Given = tuple[Any, ...]  # arguments of a call, by place and then by keyword


class RouterTap:
    """Hooks on one router that hand over each of its calls.

    Args:
        router: the router.
        take: hears of every call, in the hook of the router's module.
        partial: hand over calls whose choice cannot be read as well, with none.
        fault: hears of whatever is raised in a hook; None to raise it in the model's pass.
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
        """Take the hooks away."""
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
        if self._product is None:  # the router makes its logits itself
            x, logits = _first_tensor(self.router, given), _own_logits(self.router, output)
        else:
            x, logits = self._product
            self._product = None
        if self.router.scale != 1.0:  # of the product, and as well of its input
            x = x.to(logits.dtype) * self.router.scale
        logits_NE = logits if logits.ndim == 2 else logits.reshape(-1, logits.shape[-1])
        try:
            selected, weights, observed = _read_choice(self.router, output, logits_NE)
        except UnsupportedArchitectureError:
            if not self.partial:
                raise
            weights = logits_NE.detach()[:, :0]
            selected, observed = weights.long(), False
        handed = _handed_on(output, weights.numel())
        self.take(
            RouterCall(x.reshape(-1, x.shape[-1]), logits, weights, selected, observed, handed)
        )


def _first_tensor(router: Router, given: Given) -> torch.Tensor:
    """The router's input: the first floating-point tensor that it is given.

    Raises:
        UnsupportedArchitectureError: it is given none.
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


def _parts(output: Any) -> list[Any]:
    """What a router returns, one by one: of a tuple, a list, or a dict in its order."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]


def _own_logits(router: Router, output: Any) -> torch.Tensor:
    """The logits among the outputs of a router that makes them itself.

    A router that is a linear layer with more to say returns them last, the others first.
    """
    if isinstance(output, torch.Tensor):
        return output
    wide = [
        part
        for part in _parts(output)
        if isinstance(part, torch.Tensor)
        and part.is_floating_point()
        and part.ndim
        and part.shape[-1] == router.experts
    ]
    if not wide:
        raise _unreadable(router, output)
    return wide[-1] if len(wide) == 2 and _masks(wide[0]) else wide[0]


def _handed_on(output: Any, slots: int) -> torch.Tensor | None:
    """The combine weights among a router's outputs, as a part of the gradient's path.

    Args:
        output: what the router gave.
        slots: how many weights were read from it.
    """
    if not isinstance(output, tuple):
        return None
    floats = [
        part for part in output[1:]
        if isinstance(part, torch.Tensor) and part.is_floating_point() and part.requires_grad
    ]  # fmt: skip
    return next((part for part in floats if part.numel() == slots), None)


def _masks(scores_NE: torch.Tensor) -> bool:
    """Whether these are scores with zeros for what was not selected."""
    return bool((scores_NE == 0).any())


def _read_choice(
    router: Router, output: Any, logits_NE: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Selected experts, their weights, whether the model said so: the first form that fits.

    Raises:
        UnsupportedArchitectureError: none does.
    """
    parts = _parts(output)
    forms = (
        _sorted_by_expert, _indices, _masked_scores, _one_or_none, _routed_by_parent, _computed,
    )  # fmt: skip
    for form in forms:
        found = form(router, parts, logits_NE)
        if found is not None:
            selected, weights = found
            if router.skip_expert is not None:  # reported as expert 0 with no weight
                selected = selected.masked_fill(weights == 0, router.skip_expert)
            return selected, weights, form is not _computed
    raise _unreadable(router, output)


def _indices(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """Most routers: (logits or probabilities, weights, indices), and perhaps more."""
    tensors = [p for p in parts if isinstance(p, torch.Tensor)]
    indices = [p for p in tensors if not p.is_floating_point() and p.dtype != torch.bool]
    if len(indices) != 1:
        return None
    selected = indices[0].reshape(-1, indices[0].shape[-1])
    if len(selected) != len(logits_NE):
        return None
    floats = [p for p in tensors if p.is_floating_point() and p.numel() >= selected.numel()]
    for weights in floats[1:]:
        if weights.numel() == selected.numel():
            return selected, weights.reshape(selected.shape)
        if weights.shape[-1] == router.experts:
            return selected, weights.reshape(-1, router.experts).gather(1, selected)
    return None


def _masked_scores(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """Llama 4: scores over all experts, zero for those not selected, then the logits."""
    if len(parts) != 2 or not all(isinstance(p, torch.Tensor) for p in parts):
        return None
    scores = parts[0].reshape(-1, parts[0].shape[-1])
    if scores.shape != logits_NE.shape or router.top_k is None:
        return None
    # The logits order what underflowed; the scores say that nothing else was selected.
    selected = logits_NE.detach().topk(router.top_k, dim=-1).indices
    rest = scores.detach().scatter(1, selected, 0.0)
    return None if bool(rest.any()) else (selected, scores.gather(1, selected))


def _one_or_none(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """Switch: one expert a token as a row of zeros and a one, all zeros beyond its capacity."""
    if len(parts) != 3 or not all(isinstance(p, torch.Tensor) for p in parts):
        return None
    mask, weights = parts[0], parts[1]
    if mask.is_floating_point() or mask.numel() != logits_NE.numel() or weights.shape[-1] != 1:
        return None
    mask_NE = mask.reshape(logits_NE.shape)
    kept_N1 = mask_NE.sum(-1, keepdim=True)
    if bool((kept_N1 > 1).any()):
        return None
    selected_N1 = mask_NE.argmax(-1, keepdim=True).masked_fill(kept_N1 == 0, -1)
    return selected_N1, weights.reshape(-1, 1) * kept_N1


def _sorted_by_expert(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """JetMoE: slots sorted by expert, their tokens, their weights, and counts by expert."""
    if len(parts) != 5 or not isinstance(parts[3], list) or router.top_k is None:
        return None
    order, gates, counts = parts[0], parts[2], torch.tensor(parts[3], device=logits_NE.device)
    shape = (len(logits_NE), router.top_k)
    if len(counts) != router.experts or order.numel() != shape[0] * shape[1]:
        return None
    experts = torch.arange(router.experts, device=logits_NE.device).repeat_interleave(counts)
    selected, weights = torch.empty_like(order), torch.empty_like(gates)
    selected[order] = experts
    weights = weights.index_copy(0, order, gates)
    return selected.reshape(shape), weights.reshape(shape)


def _routed_by_parent(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """DBRX: the router gives logits alone, and the block that holds it does the rest."""
    route = getattr(router.parent, "route_tokens_to_experts", None)
    if len(parts) != 1 or route is None:
        return None
    with torch.no_grad():
        weights, selected = route(logits_NE.detach())
    return selected, weights


def _computed(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """A router that gives logits alone, its scoring and K known: top-k of the scores."""
    if router.computed is None or router.top_k is None or len(parts) != 1:
        return None
    logits_NE = logits_NE.detach().float()
    scores = find_scoring(router.computed).tensor_score(logits_NE)
    bias = router.selection_bias_E
    selected = (scores if bias is None else scores + bias.float()).topk(router.top_k, -1).indices
    return selected, scores.gather(1, selected)


def _unreadable(router: Router, output: Any) -> UnsupportedArchitectureError:
    shapes = [str(tuple(p.shape)) for p in _parts(output) if isinstance(p, torch.Tensor)]
    return UnsupportedArchitectureError(
        f"the router {router.path} ({type(router.module).__name__}) returns its choice in a form "
        "that moegeo cannot read",
        found=", ".join(shapes) or type(output).__name__,
        hint="for a model of your own whose block chooses say --scoring and --top-k; "
        "else report this model type",
    )


def verify_call(router: Router, call: RouterCall) -> str | None:
    """Recompute the logits from the input; None if they agree, else what was wrong.

    The product is taken in the dtype of the logits, as some routers raise theirs to
    float32; agreement is to a few units in the last place of the narrower dtype.
    """
    logits = call.logits_NE.detach().reshape(-1, call.logits_NE.shape[-1])
    if logits.shape[-1] != router.experts:
        return f"{logits.shape[-1]} logits for {router.experts} experts"
    weight = router.weight_ED.detach()[: router.experts]
    if weight.shape[1] != call.x_ND.shape[-1]:
        return f"inputs of width {call.x_ND.shape[-1]} for a weight of {weight.shape[1]}"
    if not torch.isfinite(logits).all():
        return None  # a non-finite router is a finding, not a misread one
    narrow = min(call.x_ND.dtype.itemsize, logits.dtype.itemsize, weight.dtype.itemsize)
    scale = float(logits.abs().max().clamp_min(1e-30))
    for dtype in {weight.dtype, logits.dtype}:
        bias = router.bias_E.to(dtype) if router.bias_E is not None else None
        again = F.linear(call.x_ND.detach().to(dtype), weight.to(dtype), bias)
        error = float((again.float() - logits.float()).abs().max())
        if error <= scale * (AGREEMENT if narrow >= 4 else AGREEMENT_HALF):
            return None
    return f"logits do not equal the router's weight times its input (off by {error / scale:.2g})"
