"""Recorded traces: what small routers did at a few tokens, drawn once from a seed.

A trace has what a replay leaves of a router, without a model: logits, the choice that follows from
them, combine weights, router inputs and Fisher sums, over sequences of unequal length.

Legend: T tokens, D width, E experts, K experts chosen per token, S sequences.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture, Selection
from moegeo_cli.fisher.accumulation import FisherAccumulator
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.arrays import CheckpointArrays
from moegeo_cli.measuring.layers import checkpoint_record
from moegeo_cli.measuring.router_arrays import make_router_arrays
from moegeo_cli.measuring.run import Measured
from moegeo_cli.probes import Probe
from moegeo_cli.probes import Sequence as Tokens
from moegeo_cli.replay.plan import Replay, RouterTrace
from moegeo_cli.routers.finding import Router
from moegeo_cli.settings import Settings

LENGTHS = (5, 9, 3, 12, 7, 6)
EXPERTS, WIDTH, TOP_K = 4, 6, 2
KINDS = (("categorical", "token"), ("empirical", "position"))


def sequences_of(lengths: Sequence[int] = LENGTHS) -> np.ndarray:
    """Each token's sequence, (T,)."""
    return np.repeat(np.arange(len(lengths)), lengths)


def architecture_of(scoring: str = "softmax", **changes: Any) -> Architecture:
    """What a config would say of these routers."""
    known: dict[str, Any] = {
        "model_type": "mixtral", "text_type": "mixtral", "known": True, "experts": EXPERTS,
        "top_k": TOP_K, "hidden": WIDTH, "layers": 2, "moe_layers": None, "scoring": scoring,
        "selection": Selection(), "unselected_gradient": "zero", "router_rows": EXPERTS,
    }  # fmt: skip
    return Architecture(**known | changes)


def router_of(weight_ED: np.ndarray, layer: int = 0, top_k: int | None = TOP_K) -> Router:
    """A router that is one linear layer of these weights."""
    linear = nn.Linear(weight_ED.shape[1], weight_ED.shape[0], bias=False)
    linear.weight.data = torch.from_numpy(np.asarray(weight_ED, dtype=np.float32))
    path = f"model.layers.{layer}.mlp.gate"
    return Router(layer, path, linear, linear, nn.Identity(), len(weight_ED), top_k,
                  linear.weight, None, None)  # fmt: skip


def choose(logits_TE: np.ndarray, top_k: int = TOP_K) -> tuple[np.ndarray, np.ndarray]:
    """The largest logits of each token, and softmax's combine weights, divided by their sum."""
    selected_TK = np.argsort(-logits_TE, axis=1, kind="stable")[:, :top_k]
    weights_TK = np.exp(np.take_along_axis(logits_TE, selected_TK, 1).astype(np.float64))
    weights_TK /= weights_TK.sum(1, keepdims=True)
    return selected_TK, weights_TK.astype(np.float32)


def trace_of(
    seed: int, layer: int = 0, lengths: Sequence[int] = LENGTHS, experts: int = EXPERTS
) -> RouterTrace:
    """What a router did at every token, with the inputs of all of them."""
    generator = np.random.default_rng([seed, layer])
    tokens = sum(lengths)
    x_TD = generator.normal(size=(tokens, WIDTH)).astype(np.float32)
    router = router_of(generator.normal(size=(experts, WIDTH)), layer)
    logits_TE = x_TD @ router.weight_ED.detach().numpy().T
    selected_TK, weights_TK = choose(logits_TE)
    group_T = group_sequences(len(lengths))[sequences_of(lengths)]
    fishers = {}
    for kind in KINDS:
        fishers[kind] = FisherAccumulator(
            experts, WIDTH, len(lengths), exact_groups=True, device=torch.device("cpu")
        )
        squares_TE = torch.from_numpy(generator.random((tokens, experts)).astype(np.float32))
        for token, group in enumerate(group_T):
            fishers[kind].add(
                squares_TE[token : token + 1], torch.from_numpy(x_TD[token : token + 1] ** 2),
                [(int(group), 0, 1)],
            )  # fmt: skip
    return RouterTrace(router, logits_TE, selected_TK, weights_TK, fishers, sample_x_MD=x_TD)


def replay_of(traces: list[RouterTrace], seed: int = 0, lengths: Sequence[int] = LENGTHS) -> Replay:
    """The outcome of a pass with these traces, and a loss that the seed draws."""
    generator = np.random.default_rng([seed, 99])
    loss_tokens_S = np.array(lengths) - 1
    loss_S = (2.0 + generator.random(len(lengths))) * loss_tokens_S
    return Replay(traces, sequences_of(lengths), loss_S, loss_tokens_S, None, "zero", [])


def arrays_of(
    seed: int, *, layers: Sequence[int] = (0, 1), scoring: str = "softmax", **changes: Any
) -> CheckpointArrays:
    """What is kept of a checkpoint with one router in each of these layers."""
    traces = [trace_of(seed, layer) for layer in layers]
    outcome, groups_S = replay_of(traces, seed), group_sequences(len(LENGTHS))
    rows = np.arange(sum(LENGTHS))
    architecture = architecture_of(scoring)
    found = [
        make_router_arrays(outcome, t, architecture, groups_S, None, rows, rows, 0) for t in traces
    ]
    known: dict[str, Any] = {
        "routers": tuple(r for r in found if r is not None), "loss_S": outcome.loss_S,
        "loss_tokens_S": outcome.loss_tokens_S, "groups_S": groups_S, "sample_rows": rows,
        "input_rows": rows, "routers_found": len(traces), "replay": {"dtype": "float32"},
    }  # fmt: skip
    return CheckpointArrays(**known | changes)


def probe_of(
    lengths: Sequence[int] = LENGTHS, domains: Sequence[str | None] | None = None, seed: int = 5
) -> Probe:
    """A probe of as many token ids; an id occurs often."""
    generator = np.random.default_rng(seed)
    named = domains or [None] * len(lengths)
    return Probe.of(
        (Tokens(generator.integers(0, 6, n), None, d) for n, d in zip(lengths, named, strict=True)),
        "recorded",
    )


@functools.cache
def measured_of(seed: int, *, step: int | None = None, **changes: Any) -> Measured:
    """A checkpoint as if it had been measured, with progress by step."""
    arrays = arrays_of(seed, **changes)
    record = checkpoint_record(
        arrays, probe_of(), Settings(), step=step, path=f"checkpoint-{step}",
        fingerprint=f"{seed:064x}", progress={"step": step, "tokens": None, "fraction": None},
    )  # fmt: skip
    return Measured(f"key-{seed}", record, lambda: arrays)
