"""Rewritings: changes of a model's weights that keep its outputs.

Each one works in place and in float64. It raises `NotApplicable` if the model does not allow it.
The caller verifies that the outputs are really unchanged.

Source: [GM], theorem 1 (invariance of routing under reparametrisation). The list of rewritings is
moegeo's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from moegeo_cli.commands.invariance.residual import Branch, NotApplicable, Use, find_residual
from moegeo_cli.routers.finding import Router

Transformation = Callable[[nn.Module, list[Router], str, tuple[int, int] | None, int], None]


def permute_experts(
    model: nn.Module,
    routers: list[Router],
    scoring: str,
    groups: tuple[int, int] | None,
    seed: int,
) -> None:
    """Renumber the experts, with their router rows and biases; groups stay together."""
    generator = torch.Generator().manual_seed(seed)
    for router in routers:
        order_E = _order(router.experts, groups[0] if groups else 1, generator)
        experts = getattr(router.parent, "experts", None)
        if experts is None:
            raise NotApplicable(f"the experts beside {router.path} were not found")
        if isinstance(experts, nn.ModuleList):
            own = list(experts)
            for place, expert in enumerate(order_E.tolist()):
                experts[place] = own[expert]
        else:
            tensors = [*experts.parameters(), *experts.buffers()]
            if not tensors or any(t.shape[0] != router.experts for t in tensors):
                raise NotApplicable(f"the experts beside {router.path} are not stacked by expert")
            for tensor in tensors:
                tensor.data.copy_(tensor.data[order_E.to(tensor.device)])
        for own_E in (router.weight_ED, router.bias_E, router.selection_bias_E):
            if own_E is not None:
                rows_E = own_E.data[: router.experts]
                rows_E.copy_(rows_E[order_E.to(own_E.device)])


def add_constant(
    model: nn.Module,
    routers: list[Router],
    scoring: str,
    groups: tuple[int, int] | None,
    seed: int,
) -> None:
    """Add one vector to every router row; for other scorings a constant to the selection bias."""
    generator = torch.Generator().manual_seed(seed)
    for router in routers:
        if scoring == "softmax":
            if router.selection_bias_E is not None:
                raise NotApplicable("the selection bias is added to the scores, not to the logits")
            weight_ED = router.weight_ED.data
            size = float(weight_ED.double().std())
            vector_D = torch.randn(weight_ED.shape[1], generator=generator, dtype=torch.float64)
            weight_ED.copy_((weight_ED.double().cpu() + size * vector_D).to(weight_ED))
        elif router.selection_bias_E is None:
            raise NotApplicable(f"{scoring} without a selection bias has no free constant")
        elif groups is not None and groups[0] > 1:
            raise NotApplicable("the constant would change which groups are chosen")
        else:
            router.selection_bias_E.data.add_(0.25)


def rotate_residual(
    model: nn.Module,
    routers: list[Router],
    scoring: str,
    groups: tuple[int, int] | None,
    seed: int,
) -> None:
    """Rotate the basis of the residual stream, after folding norm weights into their readers."""
    residual = find_residual(model)
    for branch in residual.branches:
        weight_D = branch.norm.data.double()
        _scale_readers(branch, weight_D)
        branch.norm.data.fill_(1.0)
    width = residual.writers[0].tensor.shape[1]
    generator = torch.Generator().manual_seed(seed)
    random_DD = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rotation_DD = torch.linalg.qr(random_DD)[0]
    uses = [use for branch in residual.branches for use in branch.readers] + residual.writers
    for use in uses:
        moved = use.tensor.data.double().movedim(use.axis, -1)
        rotated = (moved @ rotation_DD.to(moved.device)).movedim(-1, use.axis)
        use.tensor.data.copy_(rotated.to(use.tensor.dtype))


def rescale_norm(
    model: nn.Module,
    routers: list[Router],
    scoring: str,
    groups: tuple[int, int] | None,
    seed: int,
) -> None:
    """Rescale the norm before each router by channel, and undo it in the readers of that norm."""
    residual = find_residual(model)
    generator = torch.Generator().manual_seed(seed)
    for router in routers:
        branch = residual.before_router.get(router.layer)
        if branch is None:
            raise NotApplicable(f"the norm before {router.path} was not found")
        size = branch.norm.shape[0]
        scale_D = torch.exp(0.5 * torch.randn(size, generator=generator, dtype=torch.float64))
        branch.norm.data.copy_((branch.norm.data.double().cpu() * scale_D).to(branch.norm))
        _scale_readers(branch, 1.0 / scale_D)


TRANSFORMATIONS: dict[str, Transformation] = {
    "expert-permutation": permute_experts,
    "logit-constant": add_constant,
    "residual-rotation": rotate_residual,
    "norm-rescale": rescale_norm,
}


def _scale_readers(branch: Branch, scale_D: torch.Tensor) -> None:
    for use in branch.readers:
        _scale(use, scale_D)


def _scale(use: Use, scale_D: torch.Tensor) -> None:
    shape = [1] * use.tensor.ndim
    shape[use.axis] = -1
    data = use.tensor.data
    data.copy_((data.double() * scale_D.to(data.device).reshape(shape)).to(data.dtype))


def _order(experts: int, groups: int, generator: torch.Generator) -> torch.Tensor:
    """A random permutation of the groups, and of the experts within each group."""
    width = experts // groups
    order = torch.randperm(groups, generator=generator)
    return torch.cat([g * width + torch.randperm(width, generator=generator) for g in order])
