"""Compare moegeo's diagonal Fisher with other libraries': `python -m benchmarks.against_others`.

Needs `pip install -c constraints.txt --no-deps nngeometry backpack-for-pytorch einops unfoldNd`:
both require torchvision, which is not used here and must match the torch build exactly. All compute
the same sums, per position, of the same router rows on the same batches; their results are compared
before they are timed. nngeometry and BackPACK support nn.Linear only, so the routers of their model
are rewritten to contain one. nngeometry differentiates by its input, so it gets embeddings. A
backward pass per loss token is timed on one sequence, because a whole probe would take hours.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models import SMALL, VOCABULARY, build_model, build_probe
from moegeo_cli.replay.plan import Plan
from moegeo_cli.replay.session import replay
from moegeo_cli.routers.finding import find_routers

Sums = list[torch.Tensor]


class LinearRouter(nn.Module):
    """Qwen3-MoE's router with its product in an nn.Linear."""

    def __init__(self, router: Any) -> None:
        super().__init__()
        experts, width = router.weight.shape
        self.linear = nn.Linear(width, experts, bias=False)
        self.linear.weight = nn.Parameter(router.weight.detach().clone())
        self.top_k = router.top_k

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.linear(hidden.reshape(-1, hidden.shape[-1]))
        values, indices = logits.softmax(-1, dtype=torch.float).topk(self.top_k, dim=-1)
        weights = (values / values.sum(-1, keepdim=True)).to(logits.dtype)
        return logits, weights, indices


def with_linear_routers(model: Any) -> tuple[Any, list[nn.Linear]]:
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp.gate = LinearRouter(layer.mlp.gate)
    return model, [layer.mlp.gate.linear for layer in model.model.layers]


def sequence_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Sum of next-token losses of each sequence, in nats."""
    losses = F.cross_entropy(
        logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1), reduction="none"
    )
    return losses.reshape(len(ids), -1).sum(1)


def run_ours(model: Any, ids: torch.Tensor, batch: int) -> Sums:
    groups = np.arange(len(ids)) % 32
    plan = Plan(
        fishers=(("empirical", "position"),), groups_S=groups, scoring="softmax", batch_size=batch
    )
    rows = [row.numpy() for row in ids]
    result = replay(model, find_routers(model), rows, [None] * len(rows), plan)
    return [torch.tensor(t.fishers["empirical", "position"].totals()[0]) for t in result.traces]


def run_backpack(model: Any, linears: list[nn.Linear], ids: torch.Tensor, batch: int) -> Sums:
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    for linear in linears:
        extend(linear)
    sums = [torch.zeros_like(m.weight, dtype=torch.float64) for m in linears]
    for linear in linears:
        linear.weight.requires_grad_(True)
    for part in ids.split(batch):
        loss = sequence_losses(model(input_ids=part, use_cache=False).logits, part).sum()
        with backpack(SumGradSquared()):
            loss.backward()
        for total, linear in zip(sums, linears, strict=True):
            total += linear.weight.sum_grad_squared
            linear.weight.grad = None
    return sums


def run_nngeometry(model: Any, linears: list[nn.Linear], ids: torch.Tensor, batch: int) -> Sums:
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.layercollection import LayerCollection

    names = {m: n for n, m in model.named_modules()}
    layers = LayerCollection()
    for linear in linears:
        layers.add_layer_from_model(model, linear)
    embedded = model.model.embed_tokens(ids).detach()

    def losses(inputs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        logits = model(inputs_embeds=inputs, use_cache=False).logits
        return sequence_losses(logits, ids)[:, None]

    backend = TorchHooksJacobianBackend(model, function=losses, layer_collection=layers)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(embedded, ids), batch_size=batch
    )
    flat = backend.get_covariance_diag(loader) * len(ids)
    found, start = [], 0
    for linear in linears:
        assert names[linear]
        found.append(flat[start : start + linear.weight.numel()].view_as(linear.weight))
        start += linear.weight.numel()
    return found


def run_backward_per_token(model: Any, weights: list[Any], ids: torch.Tensor) -> None:
    """One backward a loss token, of one sequence."""
    for weight in weights:
        weight.requires_grad_(True)
    sums = [torch.zeros_like(w) for w in weights]
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
    for loss in losses:
        for total, grad in zip(
            sums, torch.autograd.grad(loss, weights, retain_graph=True), strict=True
        ):
            total += grad.square()
    for weight in weights:
        weight.requires_grad_(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8, help="sequences of 256 tokens")
    options = parser.parse_args()
    model = build_model(SMALL)
    other, linears = with_linear_routers(model)
    ids = torch.tensor(np.stack([s.input_ids for s in build_probe(options.tokens).sequences]))
    weights = [r.weight_ED for r in find_routers(model)]
    contenders: dict[str, tuple[int, Callable[[], Sums | None]]] = {
        "moegeo": (ids.numel(), lambda: run_ours(model, ids, options.batch)),
        "BackPACK": (ids.numel(), lambda: run_backpack(other, linears, ids, options.batch)),
        "nngeometry": (ids.numel(), lambda: run_nngeometry(other, linears, ids, options.batch)),
        "a backward per token": (
            len(ids[0]) - 1, lambda: run_backward_per_token(model, weights, ids[0]),
        ),
    }  # fmt: skip
    truth = contenders["moegeo"][1]()
    assert truth is not None
    print(f"Qwen3-MoE {SMALL}, float32, {torch.get_num_threads()} threads, {len(ids)} sequences of"
          f" {ids.shape[1]} tokens; microseconds a token, medians of {options.rounds}")  # fmt: skip
    for name in ("BackPACK", "nngeometry"):
        sums = contenders[name][1]()
        assert sums is not None
        gap = max(
            float((a - b).abs().max() / a.abs().max()) for a, b in zip(truth, sums, strict=True)
        )
        print(f"  {name} agrees within {gap:.1e} of the largest entry")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, (tokens, run) in contenders.items():
            start = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - start) / tokens)
    for name, values in seconds.items():
        ratios = [v / o for v, o in zip(values, seconds["moegeo"], strict=True)]
        print(f"  {name:22} {statistics.median(values) * 1e6:9.1f}"
              f"   {statistics.median(ratios):7.2f} x moegeo")  # fmt: skip


if __name__ == "__main__":
    main()
