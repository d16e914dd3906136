"""Compare heterogeneity from diagonal Fishers of the experts with that from whole matrices.

Both of the same tokens, unit `position`: F_e = (1/T) Σ_t w_te x_t x_tᵀ, w the squared derivative of
the loss (empirical) or p(1 − p) (categorical, softmax). Their trace forms are equal by definition.

Legend: T tokens, E experts, D width of the router's input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.evidence.faults import RouterTap
from benchmarks.evidence.models import losses
from benchmarks.evidence.tasks import Split

SEQUENCES = 64


def compare(model: nn.Module, taps: list[RouterTap], split: Split) -> list[dict[str, Any]]:
    """Both forms of every router, on the first sequences of a split."""
    inputs: list[torch.Tensor] = []
    handles = [
        tap.router.register_forward_hook(lambda _, given, __: inputs.append(given[0].detach()))
        for tap in taps
    ]
    training = model.training
    model.eval()
    try:
        loss = losses(model, split.inputs[:SEQUENCES], split.labels[:SEQUENCES]).sum()
        logits = [tap.logits_TE for tap in taps]
        gradients = torch.autograd.grad(loss, [x for x in logits if x is not None])
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    found = []
    for place, (tap, x, gradient, z) in enumerate(
        zip(taps, inputs, gradients, logits, strict=True)
    ):
        assert z is not None
        x_TD = x.reshape(-1, x.shape[-1]).double()
        weights = {"empirical": gradient.reshape(-1, gradient.shape[-1]).double() ** 2}
        if not tap.sigmoid:
            p_TE = z.detach().reshape(-1, z.shape[-1]).double().softmax(-1)
            weights["categorical"] = p_TE * (1 - p_TE)
        for kind, w_TE in weights.items():
            found.append({"layer": place, "kind": kind, "width": x_TD.shape[1],
                          "experts": w_TE.shape[1], **_forms(w_TE, x_TD)})  # fmt: skip
    return found


def _forms(w_TE: torch.Tensor, x_TD: torch.Tensor) -> dict[str, float | None]:
    full_EDD = torch.einsum("te,td,tf->edf", w_TE, x_TD, x_TD) / len(x_TD)
    diagonal_ED = full_EDD.diagonal(dim1=1, dim2=2)
    absolute, relative = _heterogeneity(full_EDD.flatten(1))
    diagonal, diagonal_relative = _heterogeneity(diagonal_ED)
    share = float(diagonal_ED.pow(2).sum() / full_EDD.pow(2).sum().clamp_min(1e-300))
    return {"full": absolute, "diagonal": diagonal, "full_relative": relative,
            "diagonal_relative": diagonal_relative, "share": share}  # fmt: skip


def _heterogeneity(fisher_EP: torch.Tensor) -> tuple[float, float | None]:
    """H and H / ‖F̄‖ of experts' Fishers as vectors."""
    mean_P = fisher_EP.mean(0)
    absolute = float((fisher_EP - mean_P).norm(dim=1).mean())
    norm = float(mean_P.norm())
    return absolute, absolute / norm if norm else None
