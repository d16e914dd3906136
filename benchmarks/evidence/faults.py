"""The faults that are injected into a training: in its routers, weights and optimizer.

Legend: T tokens of a batch, E experts, K chosen per token, D width, S positions of a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.evidence.models import expert_weights, find_routers
from benchmarks.evidence.settings import ModelSettings, TrainSettings

PRECISIONS = {"bfloat16": torch.bfloat16, "float8": torch.float8_e4m3fn}


@dataclass
class RouterTap:
    """What one router did in the batch at hand, and the hooks that make it do it wrongly."""

    router: nn.Module
    sigmoid: bool
    top_k: int
    logits_TE: torch.Tensor | None = None
    chosen_TK: torch.Tensor | None = None
    handles: list[Any] = field(default_factory=list)


def tap_routers(model: nn.Module, settings: ModelSettings, train: TrainSettings) -> list[RouterTap]:
    """Watch every router; in training mode with the faults that the settings ask for."""
    taps = []
    for router in find_routers(model):
        tap = RouterTap(router, settings.kind == "glm4_moe", settings.top_k)
        tap.handles = [
            router.register_forward_pre_hook(_spoil_input(router, train)),
            router.register_forward_hook(_watch(tap, settings, train)),
        ]
        taps.append(tap)
    return taps


def _spoil_input(router: nn.Module, train: TrainSettings) -> Any:
    def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> Any:
        (x,) = arguments
        if not module.training:
            return None
        if train.router_precision != "float32":
            x = x + (rounded(x, train.router_precision) - x).detach()
        if train.router_noise:
            noise = torch.empty_like(x).uniform_(1 - train.router_noise, 1 + train.router_noise)
            x = x * noise
        return (x,)

    return hook


def _watch(tap: RouterTap, settings: ModelSettings, train: TrainSettings) -> Any:
    def hook(module: nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):  # a plain linear router: its block takes the top K
            tap.logits_TE = output
            tap.chosen_TK = output.topk(tap.top_k, dim=-1).indices
            return None
        tap.logits_TE, weights_TK, tap.chosen_TK = output
        if not (module.training and train.capacity):
            return None
        kept_TK = within_capacity(tap.chosen_TK, settings.experts, train.capacity)
        return tap.logits_TE, weights_TK * kept_TK, tap.chosen_TK

    return hook


def rounded(x: torch.Tensor, precision: str) -> torch.Tensor:
    """The nearest numbers that a precision holds."""
    return x.detach().to(PRECISIONS[precision]).to(x.dtype)


def within_capacity(chosen_TK: torch.Tensor, experts: int, factor: float) -> torch.Tensor:
    """Which slots an expert of limited capacity still takes, first come, first served, (T, K).

    The capacity is `factor` times the fair share K·T/E.
    """
    flat = chosen_TK.reshape(-1)
    taken = nn.functional.one_hot(flat, experts).cumsum(0).gather(1, flat[:, None])[:, 0]
    most = max(1, int(factor * len(flat) / experts))
    return (taken <= most).view_as(chosen_TK)


def balance_loss(tap: RouterTap, over: str, positions: int) -> torch.Tensor:
    """E Σ_e load_e mean p_e of one layer, 1 at balance; over "sequence" the mean over sequences.

    Source: Switch Transformers (arXiv 2101.03961), equation 4; p of a sigmoid router is s / Σ s.
    """
    assert tap.logits_TE is not None
    assert tap.chosen_TK is not None
    logits_TE = tap.logits_TE.float().reshape(-1, tap.logits_TE.shape[-1])
    chosen_TK = tap.chosen_TK.reshape(-1, tap.top_k)
    experts = logits_TE.shape[1]
    if tap.sigmoid:
        score_TE = logits_TE.sigmoid()
        p_TE = score_TE / score_TE.sum(-1, keepdim=True)
    else:
        p_TE = logits_TE.softmax(-1)
    load_TE = torch.zeros_like(p_TE).scatter(1, chosen_TK, 1.0 / tap.top_k)
    group = positions if over == "sequence" else len(p_TE)
    p_GE, load_GE = (x.view(-1, group, experts).mean(1) for x in (p_TE, load_TE))
    return experts * (load_GE * p_GE).sum(-1).mean()


def z_loss(tap: RouterTap) -> torch.Tensor:
    """Mean squared logsumexp of logits (ST-MoE, arXiv 2202.08906)."""
    assert tap.logits_TE is not None
    return torch.logsumexp(tap.logits_TE.float(), -1).pow(2).mean()


def loads(tap: RouterTap, experts: int) -> torch.Tensor:
    """Slots by expert in the batch at hand, (E,), on the CPU."""
    assert tap.chosen_TK is not None
    return torch.bincount(tap.chosen_TK.reshape(-1), minlength=experts).double().cpu()


@torch.no_grad()
def spoil_start(model: nn.Module, train: TrainSettings) -> None:
    """Routers that begin too sharp, experts that begin too large."""
    for router in find_routers(model):
        router.weight.mul_(train.router_scale)  # type: ignore[operator, union-attr]
    if not train.bad_experts:
        return
    for parameters in expert_weights(model):
        count = round(train.bad_experts * len(parameters[0]))
        for parameter in parameters:
            parameter[:count] *= train.bad_scale**0.5


@torch.no_grad()
def draw_routers(model: nn.Module, seed: int) -> None:
    """Routers as a loader leaves them that did not find their tensors: drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    for router in find_routers(model):
        weight: torch.Tensor = router.weight  # type: ignore[assignment]
        weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def store_routers(model: nn.Module, precision: str) -> None:
    """Router weights kept in a low precision: what an update loses there is lost."""
    if precision == "float32":
        return
    for router in find_routers(model):
        weight: torch.Tensor = router.weight  # type: ignore[assignment]
        weight.copy_(rounded(weight, precision))
