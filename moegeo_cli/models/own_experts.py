r"""Experts of a user's own model as functions, computed by running the block that contains them.

An expert's module may be only a part of the expert's function: the block may apply the activation.
So the whole block B is run, with its router forced to select expert e alone. The function of the
expert is :math:`f_e(x) = B_e(x) - S(x)`. S is the shared output: that of the block with the
experts' parameters at zero (a residual connection, a shared expert).

This is verified on tokens of the probe:

- S is the same with one expert's parameters at zero as with all experts' at zero;
- the block's output for a token does not depend on the other tokens;
- the output minus S is the sum of the functions of the selected experts, weighted by the combine
  weights that were recorded.

A block that fails has no functions, and a reason.

Legend: N tokens, D width of a block's input, O width of its output, E experts, K experts chosen per
token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moegeo_cli.expert_functions.blocks import ExpertBlock, list_members
from moegeo_cli.expert_functions.single_expert import (
    NO_TENSOR,
    CannotIsolateExpert,
    SingleExpertBlock,
    first_output,
)
from moegeo_cli.replay.reading import RouterCall, RouterTap
from moegeo_cli.routers.finding import Router

CHECKED_TOKENS = 8
# Largest relative difference of equal results, in float32 and in half precision.
AGREEMENT, AGREEMENT_HALF = 1e-4, 0.05

NO_BLOCK = "no block whose parameters have one entry for each expert was found around the router"
OTHER_INPUT = "the block and its router get different inputs, so the experts' input is not known"
NOT_APART = "its experts cannot be separated from the rest of their block"
MIXES = "the block's output for a token depends on other tokens"
NO_SUM = "the block's output is not the weighted sum of its experts"
FAILS = "its block cannot be asked for one expert: {}"


def find_own_experts(
    model: nn.Module, routers: Sequence[Router], sample: Mapping[str, torch.Tensor], call: Any
) -> dict[str, ExpertBlock]:
    """The experts of each router, verified on one sample.

    Args:
        model: the user's module.
        routers: its routers.
        sample: inputs of the model by name, a batch of one.
        call: runs the model on `sample`.

    Returns:
        Router's path -> its experts. A block whose experts could not be verified has a `problem`.
    """
    modules = dict(model.named_modules())
    blocks = {r.path: block for r in routers if (block := _find_block(r, modules)) is not None}
    recorded: dict[str, _Recorded] = {r.path: _Recorded() for r in routers}
    handles: list[Any] = [
        RouterTap(r, recorded[r.path].record_router, partial=True) for r in routers
    ]
    handles += [
        block.register_forward_hook(recorded[path].record_block, with_kwargs=True)
        for path, block in blocks.items()
    ]
    try:
        with torch.no_grad():
            call(sample)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for router in routers:
        block = blocks.get(router.path)
        if block is None:
            found[router.path] = _not_verified(router, NO_BLOCK)
            continue
        try:
            found[router.path] = _verify(router, block, recorded[router.path])
        except CannotIsolateExpert as reason:
            found[router.path] = _not_verified(router, str(reason))
    return found


class _Recorded:
    """Inputs and outputs of a router and its block in one forward pass."""

    def __init__(self) -> None:
        self.call: RouterCall | None = None
        self.block_input: torch.Tensor | None = None
        self.block_output: torch.Tensor | None = None

    def record_router(self, call: RouterCall) -> None:
        """Record a call of the router."""
        self.call = call

    def record_block(
        self, module: nn.Module, args: Any, kwargs: Mapping[str, Any], output: Any
    ) -> None:
        """Record a call of the block."""
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if tensors and tensors[0].ndim:  # copies: residual streams are often added to in place
            self.block_input = tensors[0].detach().clone()
            first = first_output(output, len(self.block_input))
            self.block_output = None if first is None else first.detach().clone()


def _not_verified(router: Router, problem: str) -> ExpertBlock:
    return ExpertBlock(router, router.parent, "block", router.experts, problem)


def _find_block(router: Router, modules: Mapping[str, nn.Module]) -> nn.Module | None:
    """The innermost module around the router that has parameters of single experts."""
    path = router.path
    while path:
        path = path.rpartition(".")[0]
        if _expert_parameters(modules[path], router):
            return modules[path]
    return None


def _expert_parameters(block: nn.Module, router: Router) -> dict[str, int | None]:
    """Name of a parameter -> its expert; None if the first axis of the parameter is the experts."""
    count = router.experts
    inside = {id(p) for m in (router.module, router.linear) for p in m.parameters()}
    found: dict[str, int | None] = {}
    for path, module in block.named_modules():
        members = list_members(module)
        if members is None or len(members) != count:
            continue
        names = {id(p): n for n, p in module.named_parameters(prefix=path)}
        for e, member in enumerate(members):
            found |= {names[id(p)]: e for p in member.parameters() if id(p) in names}
    for name, parameter in block.named_parameters():
        if parameter.ndim >= 2 and len(parameter) == count and id(parameter) not in inside:
            found.setdefault(name, None)
    return found


def _verify(router: Router, block: nn.Module, recorded: _Recorded) -> ExpertBlock:
    """The experts of a block as functions, after the checks of the module's docstring.

    Raises:
        CannotIsolateExpert: a check fails; the message is the reason.
    """
    call, given, output = recorded.call, recorded.block_input, recorded.block_output
    if call is None or given is None:
        raise CannotIsolateExpert(OTHER_INPUT)
    if output is None or output.numel() % max(given[..., 0].numel(), 1):
        raise CannotIsolateExpert(FAILS.format(NO_TENSOR))
    rows_ND = given.reshape(-1, given.shape[-1])
    x_ND = call.x_ND.detach()
    half = rows_ND.dtype.itemsize < 4
    limit = AGREEMENT_HALF if half else AGREEMENT
    if rows_ND.shape != x_ND.shape or not _close(rows_ND, x_ND.to(rows_ND), limit):
        raise CannotIsolateExpert(OTHER_INPUT)
    step = max(1, len(rows_ND) // CHECKED_TOKENS)
    few = slice(None, step * CHECKED_TOKENS, step)
    x_ND, output_NO = rows_ND[few], output.reshape(len(rows_ND), -1)[few]
    selected_NK, weights_NK = call.selected_NK[few], call.weights_NK.detach()[few]
    parameters = _expert_parameters(block, router)
    experts = SingleExpertBlock(router, block, parameters, given.ndim)
    try:
        with torch.no_grad():
            # In reverse order, so that a token has other neighbours than in its sequence.
            if not _close(experts.block_output(x_ND.flip(0)).flip(0), output_NO, limit):
                raise CannotIsolateExpert(MIXES)
            rest_NO = experts.shared_output(0, x_ND)
            for e in (0, router.experts - 1):
                alone_NO = experts.shared_output(e, x_ND, alone=True)
                if not _near(alone_NO, rest_NO, output_NO, limit):
                    raise CannotIsolateExpert(NOT_APART)
            experts.has_shared_output = not _near(
                rest_NO, torch.zeros_like(rest_NO), output_NO, limit
            )
            parts = torch.stack([experts(e, x_ND) for e in range(router.experts)], 1)
    except CannotIsolateExpert:
        raise
    except Exception as error:  # whatever a user's code raises
        raise CannotIsolateExpert(FAILS.format(f"{type(error).__name__}: {error}"[:120])) from error
    mix_NE = torch.zeros(len(x_ND), router.experts, dtype=parts.dtype, device=parts.device)
    if not selected_NK.shape[-1]:
        raise CannotIsolateExpert(NO_SUM)
    mix_NE.scatter_add_(1, selected_NK.clamp_min(0), (weights_NK * (selected_NK >= 0)).to(mix_NE))
    routed_NO = output_NO - rest_NO
    for renormalised in (False, True):
        weights_NE = mix_NE / mix_NE.sum(1, keepdim=True) if renormalised else mix_NE
        if _near(torch.einsum("ne,neo->no", weights_NE, parts), routed_NO, routed_NO, limit):
            return _describe(router, block, experts, parameters, renormalised=renormalised)
    raise CannotIsolateExpert(NO_SUM)


def _describe(
    router: Router, block: nn.Module, experts: SingleExpertBlock,
    parameters: Mapping[str, int | None], *, renormalised: bool,
) -> ExpertBlock:  # fmt: skip
    lists = [m for m in block.modules() if list_members(m) is not None]
    members = next((x for m in lists if len(x := list_members(m) or ()) == router.experts), None)
    stacked = tuple(name for name, expert in parameters.items() if expert is None)
    return ExpertBlock(
        router, block, "block", router.experts, members=None if stacked else members,
        stacked=stacked, call_expert=experts, renormalised=renormalised,
    )  # fmt: skip


def _near(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor, limit: float) -> bool:
    """Whether the norm of a − b is at most `limit` times the norm of `scale`."""
    return bool((a - b).float().norm() <= limit * scale.float().norm().clamp_min(1e-30))


def _close(a: torch.Tensor, b: torch.Tensor, limit: float) -> bool:
    return _near(a, b, b, limit)
