"""Models whose routers are not called exactly once for every token, or not alike twice."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from tests.own_models.models import CHOSEN, EXPERTS, WIDTH, Causal, Mixture


class Twice(Causal):
    """Looped depth: all blocks run two times over, by one set of weights."""

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        for _ in range(2):
            for block in self.blocks:
                x = x + block(x)
        return self.head(x)


class Shared(Causal):
    """A block that runs again behind the last one."""

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        for block in (*self.blocks, self.blocks[0]):
            x = x + block(x)
        return self.head(x)


class Swallowing(Twice):
    """As that, with a handler around each block."""

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        for block in (*self.blocks, *self.blocks):
            with contextlib.suppress(Exception):
                x = x + block(x)
        return self.head(x)


class Skipping(Causal):
    """The second block is left out for long sequences."""

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        for block in self.blocks[: 1 if idx.shape[1] > 10 else 2]:
            x = x + block(x)
        return self.head(x)


class Deeper(Causal):
    """One more turn for long sequences alone."""

    def forward(self, idx: torch.Tensor) -> Any:
        x = self.embed(idx)
        for block in (*self.blocks, *(self.blocks if idx.shape[1] > 100 else ())):
            x = x + block(x)
        return self.head(x)


class Choosing(nn.Module):
    """A router that draws its experts, or adds noise to its logits, in evaluation mode too."""

    def __init__(self, *, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.weight = nn.Parameter(torch.zeros(EXPERTS, WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = x.reshape(-1, WIDTH) @ self.weight.T
        if self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
            weights, chosen = logits.softmax(-1).topk(CHOSEN)
        else:
            chosen = torch.multinomial(logits.softmax(-1), CHOSEN)
            weights = logits.softmax(-1).gather(1, chosen)
        return logits, weights / weights.sum(-1, keepdim=True), chosen


class RandomMixture(Mixture):
    """Experts behind such a router."""

    def __init__(self, noise: float) -> None:
        super().__init__("softmax")
        self.gate = Choosing(noise=noise)  # type: ignore[assignment]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, weights, chosen = self.gate(x)
        mix = torch.zeros(len(weights), EXPERTS).scatter(1, chosen, weights)
        out = torch.stack([expert(x).relu() for expert in self.experts], dim=-1)
        return (out * mix.reshape(*x.shape[:-1], 1, EXPERTS)).sum(-1)


class Random(Causal):
    """A causal model of them."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RandomMixture(noise) for _ in range(2))


def twice(config: dict[str, Any] | None) -> nn.Module:
    return Twice()


def shared(config: dict[str, Any] | None) -> nn.Module:
    return Shared()


def swallowing(config: dict[str, Any] | None) -> nn.Module:
    return Swallowing()


def skipping(config: dict[str, Any] | None) -> nn.Module:
    return Skipping()


def deeper(config: dict[str, Any] | None) -> nn.Module:
    return Deeper()


def drawing(config: dict[str, Any] | None) -> nn.Module:
    return Random(0.0)


def noisy(config: dict[str, Any] | None) -> nn.Module:
    return Random(0.1)
