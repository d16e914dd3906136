"""What a model did with its experts, seen from outside its routers.

Nothing of moegeo's is used: dispatch is read off the arguments that the expert modules were
called with, gradients off the router parameters after one backward per sequence.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

EXPERTS = re.compile(r"(Experts|NaiveMoe)$")


@dataclass
class Block:
    """One block of experts: dispatch counts, and normalised combine weights by token."""

    path: str
    experts: int
    counts_E: np.ndarray
    weights: list[np.ndarray] = field(default_factory=list)  # (N, K), rows summing to 1
    selected: list[np.ndarray] = field(default_factory=list)  # (N, K)


def load_whole(path: Path) -> Any:
    """The model as it was saved, by the class that its config names."""
    import transformers

    [name] = transformers.AutoConfig.from_pretrained(path).architectures
    model = getattr(transformers, name).from_pretrained(path, dtype=torch.float32)
    return getattr(model, "thinker", model).eval().requires_grad_(False)


def place(path: str) -> str:
    """A module's path without what depends on the class that holds the language model."""
    wraps = {"model", "language_model"}
    return ".".join(part for part in path.split(".") if part not in wraps)


def watch_experts(model: nn.Module, ids: list[list[int]], experts: int) -> list[Block]:
    """Run every sequence by itself; blocks in the order in which they are called."""
    with watched(model, experts) as blocks, torch.no_grad():
        for sequence in ids:
            model(input_ids=torch.tensor([sequence]), use_cache=False)
    return list(blocks.values())


@contextlib.contextmanager
def watched(model: nn.Module, experts: int) -> Iterator[dict[str, Block]]:
    """Blocks by path, in the order in which they are called while the context is open."""
    blocks: dict[str, Block] = {}

    def spy(path: str) -> Any:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            block = blocks.setdefault(path, Block(path, experts, np.zeros(experts)))
            given = [*args, *kwargs.values()]
            sizes = [g for g in given if isinstance(g, list)]
            tensors = [g.detach() for g in given if isinstance(g, torch.Tensor)]
            whole = [t for t in tensors if not t.is_floating_point()]
            if sizes:  # tokens a expert, counted by the model itself
                block.counts_E += np.array(sizes[0])
            elif whole:
                chosen = whole[0].reshape(-1, whole[0].shape[-1])
                weights = [t for t in tensors if t.is_floating_point()][-1].reshape(chosen.shape)
                block.selected.append(chosen.numpy().copy())
                total = weights.sum(-1, keepdim=True)
                block.weights.append((weights / total).numpy())
                used = chosen[weights != 0] if (weights == 0).any() else chosen.flatten()
                block.counts_E += np.bincount(used.flatten().numpy(), minlength=experts)
            else:  # each expert's copy of every token, zero where it was not chosen
                rows = tensors[0].reshape(experts, -1, tensors[0].shape[-1])
                block.counts_E += (rows != 0).any(-1).sum(-1).numpy()

        return see

    handles = []
    for path, module in model.named_modules():
        name = type(module).__name__
        own = path.rpartition(".")[2]
        if EXPERTS.search(name) and "shared" not in own and own != "output_linear":
            handles.append(module.register_forward_pre_hook(spy(path), with_kwargs=True))
    try:
        yield blocks
    finally:
        for handle in handles:
            handle.remove()


def router_weights(model: nn.Module, paths: list[str], rows: int) -> list[torch.Tensor]:
    """The parameter of each router that has a row for every expert."""
    found = []
    for path in paths:
        own = [
            p for n, p in model.named_parameters()
            if place(n).startswith(f"{place(path)}.")
            and p.ndim == 2
            and rows <= p.shape[0] <= rows + 1
        ]  # fmt: skip
        assert len(own) == 1, (path, [tuple(p.shape) for p in own])
        found.append(own[0])
    return found


def sequence_traces(
    model: nn.Module, weights: list[torch.Tensor], ids: list[list[int]], rows: int
) -> list[np.ndarray]:
    """Σ over sequences of the squared gradient of the sequence's loss, by router row, per token."""
    for weight in weights:
        weight.requires_grad_(True)
    traces = [np.zeros(rows) for _ in weights]
    for sequence in ids:
        batch = torch.tensor([sequence])
        logits = model(input_ids=batch, use_cache=False).logits[0].float()
        loss = F.cross_entropy(logits[:-1], batch[0, 1:], reduction="sum")
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        for trace, gradient in zip(traces, gradients, strict=True):
            if gradient is not None:
                trace += gradient[:rows].double().square().sum(1).numpy()
    tokens = sum(map(len, ids))
    return [trace / tokens for trace in traces]
