"""Read which experts a router selected, and with which weights, from its output.

The forms of that output are recognised by shape and type, never by a model's name. A new form is
one function here, in the list of `read_choice`.

Legend: N tokens, E experts, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.routers.finding import Router
from moegeo_cli.scorings import find_scoring

Choice = tuple[torch.Tensor, torch.Tensor]  # selected_NK, weights_NK


def output_parts(output: Any) -> list[Any]:
    """The parts of a router's output: the entries of a tuple, list or dict, or the one output."""
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]


def read_choice(
    router: Router, output: Any, logits_NE: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Read the choice by the first form that fits the router's output.

    Args:
        router: the router.
        output: what its module returned.
        logits_NE: its logits.

    Returns:
        The selected experts, their weights, and whether both were observed (not computed).

    Raises:
        UnsupportedArchitectureError: no form fits.
    """
    parts = output_parts(output)
    forms = (
        _sorted_by_expert, _indices, _masked_scores, _one_hot, _routed_by_parent, _computed,
    )  # fmt: skip
    for form in forms:
        found = form(router, parts, logits_NE)
        if found is not None:
            selected, weights = found
            if router.skip_expert is not None:  # the model reports it as expert 0 with weight 0
                selected = selected.masked_fill(weights == 0, router.skip_expert)
            return selected, weights, form is not _computed
    raise unreadable_error(router, output)


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
    # Logits give the order of scores that underflowed; the scores show that no other expert was
    # selected.
    selected = logits_NE.detach().topk(router.top_k, dim=-1).indices
    rest = scores.detach().scatter(1, selected, 0.0)
    return None if bool(rest.any()) else (selected, scores.gather(1, selected))


def _one_hot(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """Switch: one expert per token, as a one-hot row; all zeros beyond the expert's capacity."""
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
    """DBRX: the router returns only logits, and its parent block chooses the experts."""
    route = getattr(router.parent, "route_tokens_to_experts", None)
    if len(parts) != 1 or route is None:
        return None
    with torch.no_grad():
        weights, selected = route(logits_NE.detach())
    return selected, weights


def _computed(router: Router, parts: list[Any], logits_NE: torch.Tensor) -> Choice | None:
    """A router that returns only logits, with known scoring and K: the top-k of the scores."""
    if router.choice_scoring is None or router.top_k is None or len(parts) != 1:
        return None
    logits_NE = logits_NE.detach().float()
    scores = find_scoring(router.choice_scoring).tensor_score(logits_NE)
    bias = router.selection_bias_E
    selected = (scores if bias is None else scores + bias.float()).topk(router.top_k, -1).indices
    return selected, scores.gather(1, selected)


def unreadable_error(router: Router, output: Any) -> UnsupportedArchitectureError:
    """The error for an output that no form fits."""
    shapes = [str(tuple(p.shape)) for p in output_parts(output) if isinstance(p, torch.Tensor)]
    return UnsupportedArchitectureError(
        f"the router {router.path} ({type(router.module).__name__}) returns its choice in a form "
        "that moegeo cannot read",
        found=", ".join(shapes) or type(output).__name__,
        hint="if the block of your own model chooses the experts, give --scoring and --top-k; "
        "otherwise report this model type",
    )
