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


class Swiglu(nn.Module):
    """An expert of three layers, with an activation that it keeps nowhere."""

    def __init__(self, width: int = WIDTH, inner: int = 9) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return found


class Chooser(nn.Module):
    """A router that says what it chose, its weights renormalised and scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = F.linear(x.reshape(-1, WIDTH), self.weight)
        weights, chosen = logits.sigmoid().topk(CHOSEN, dim=-1)
        return logits, 2.5 * weights / weights.sum(-1, keepdim=True), chosen


class Listed(nn.Module):
    """A list of experts beside a shared one, the residual connection inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.shared = Chooser(), Swiglu()
        self.experts = nn.ModuleList(Swiglu() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        _, weights, chosen = self.router(x)
        rows = x.reshape(-1, WIDTH)
        out = rows + self.shared(rows)
        for e, expert in enumerate(self.experts):
            share = (weights * (chosen == e)).sum(-1, keepdim=True)
            out = out + share * expert(rows)
        return out.reshape(x.shape), None


class Stacked(nn.Module):
    """Experts fused in the block with biases; sigmoid scores as they are; called with rows."""

    def __init__(self, inner: int = 7) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.up = nn.Parameter(torch.randn(EXPERTS, inner, WIDTH))
        self.up_bias = nn.Parameter(torch.randn(EXPERTS, inner))
        self.down = nn.Parameter(torch.randn(EXPERTS, inner, WIDTH))
        self.down_bias = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def one(self, e: int, x: torch.Tensor) -> torch.Tensor:
        return (
            F.relu(x @ self.up[e].T + self.up_bias[e]).square() @ self.down[e] + self.down_bias[e]
        )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        weights, chosen = self.gate(rows).sigmoid().topk(CHOSEN, dim=-1)
        mix = torch.zeros(len(rows), EXPERTS).to(rows).scatter(1, chosen, weights)
        parts = torch.stack([self.one(e, rows) for e in range(EXPERTS)], 1)
        return torch.einsum("ne,nec->nc", mix, parts)


class Normed(Stacked):
    """A norm between the block's input and its router."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(F.layer_norm(rows.exp(), (WIDTH,)))


class NormedAfter(Stacked):
    """A norm over the sum of the experts: what the block gives is no sum of them."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(super().forward(rows), (WIDTH,))


class Mixing(Stacked):
    """What a token gets depends on its neighbour."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        out = super().forward(rows)
        return out + rows.roll(1, 0)


class Boxed(Stacked):
    """What the block gives is in a dictionary."""

    def forward(self, rows: torch.Tensor) -> Any:
        return {"out": super().forward(rows)}


class Entangled(Stacked):
    """A table with a row an expert that every token gets."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return super().forward(rows) + rows * self.table.sum(0)


class Rows(nn.Module):
    """Token ids in, logits out, around blocks that are called with tensors of two dimensions."""

    def __init__(self, block: type[nn.Module], *, flat: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.flat = flat

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            steps = torch.arange(1, x.shape[1] + 1)[None, :, None]
            seen = F.layer_norm(x + x.cumsum(1) / steps, (WIDTH,))
            made = block(seen.reshape(-1, WIDTH) if self.flat else seen)
            made = made["out"] if isinstance(made, dict) else made
            x = x + (made[0] if isinstance(made, tuple) else made).reshape(x.shape)
        logits: torch.Tensor = self.head(x)
        return logits


def listed(config: dict[str, Any] | None) -> nn.Module:
    return Rows(Listed, flat=False)


def stacked(config: dict[str, Any] | None) -> nn.Module:
    return Rows(Stacked, flat=True)


def normed(config: dict[str, Any] | None) -> nn.Module:
    return Rows(Normed, flat=True)


def normed_after(config: dict[str, Any] | None) -> nn.Module:
    return Rows(NormedAfter, flat=True)


def mixing(config: dict[str, Any] | None) -> nn.Module:
    return Rows(Mixing, flat=True)


def boxed(config: dict[str, Any] | None) -> nn.Module:
    return Rows(Boxed, flat=True)


def entangled(config: dict[str, Any] | None) -> nn.Module:
    return Rows(Entangled, flat=True)


def same_listed(config: dict[str, Any] | None) -> nn.Module:
    return listed(config)
