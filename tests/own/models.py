"""Small models of no library, as users write them; each is a factory for --model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

VOCABULARY, WIDTH, EXPERTS, CHOSEN = 32, 12, 5, 2
SIZES = {"vocab_size": VOCABULARY, "num_experts": EXPERTS, "num_experts_per_tok": CHOSEN}


class Mixture(nn.Module):
    """A linear gate; this block scores, chooses and renormalises."""

    def __init__(self, scoring: str, *, renormalise: bool = True) -> None:
        super().__init__()
        self.scoring, self.renormalise = scoring, renormalise
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.gate(x)
        scores = logits.softmax(-1) if self.scoring == "softmax" else logits.sigmoid()
        weights, chosen = scores.topk(CHOSEN, dim=-1)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        mix = torch.zeros_like(scores).scatter(-1, chosen, weights)
        out = torch.stack([expert(x).relu() for expert in self.experts], dim=-1)
        return (out * mix[..., None, :]).sum(-1)


class Causal(nn.Module):
    """Token ids in, logits of every position out; a position sees the mean of those before."""

    def __init__(self, scoring: str = "softmax", *, renormalise: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Mixture(scoring, renormalise=renormalise) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        for block in self.blocks:
            steps = torch.arange(1, x.shape[1] + 1)[None, :, None]
            x = x + block(x + x.cumsum(1) / steps)
        return self.head(x), None  # as many return a loss besides


class LastOnly(Causal):
    """Gives logits of the last position alone, as some do without labels."""

    def forward(self, idx: torch.Tensor) -> Any:
        return super().forward(idx)[0][:, -1:]


class Batched(Causal):
    """Samples of a batch influence each other."""

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        x = x - x.mean(0, keepdim=True) * (len(x) > 1)
        for block in self.blocks:
            x = x + block(x)
        return {"logits": self.head(x)}


class PositionsFirst(nn.Module):
    """Images whose patches come first and samples second."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(3, WIDTH), Mixture("softmax")
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        x = self.block(self.embed(patches).transpose(0, 1))
        logits: torch.Tensor = self.head(x.mean(0))
        return logits


def spread(model: nn.Module, seed: int) -> nn.Module:
    """Weights large enough that routers decide clearly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return model


def softmax(config: dict[str, Any] | None) -> nn.Module:
    return Causal()


def sigmoid(config: dict[str, Any] | None) -> nn.Module:
    return Causal("sigmoid")


def dense(config: dict[str, Any] | None) -> nn.Module:
    return Causal(renormalise=False)


def last_only(config: dict[str, Any] | None) -> nn.Module:
    return LastOnly()


def batched(config: dict[str, Any] | None) -> nn.Module:
    return Batched()


def positions_first(config: dict[str, Any] | None) -> nn.Module:
    return PositionsFirst()


def broken(config: dict[str, Any] | None) -> nn.Module:
    raise KeyError("no such size")


def nothing(config: dict[str, Any] | None) -> Any:
    return F


def library(config: dict[str, Any] | None) -> nn.Module:
    """A transformers model by way of a factory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    assert config is not None
    known = AutoConfig.for_model(**config)
    model: nn.Module = AutoModelForCausalLM.from_config(known)
    return model
