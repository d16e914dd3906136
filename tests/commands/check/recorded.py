"""Sums of small layers as check keeps them, and runs of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from moegeo_cli.commands.check.history import Entry, Past, RunHistory
from moegeo_cli.commands.check.layer_sums import LayerSums
from moegeo_cli.commands.check.reading import Piece
from moegeo_cli.commands.check.sketches import mean_distance, pack, sketch
from moegeo_cli.verdict.thresholds import load_thresholds

EXPERTS, WIDTH = 4, 6


def layer_of(number: int = 0, digest: str = "a", **changes: Any) -> LayerSums:
    """A healthy layer without a selection bias; `digest` tells its tensors from others'."""
    known: dict[str, Any] = {
        "layer": number, "router": f"model.layers.{number}.mlp.gate", "experts": EXPERTS,
        "router_digest": f"router {digest}", "row_norms": (1.0, 2.0, 3.0, 4.0),
        "stable_rank": 2.5, "cosine": 0.2, "width": WIDTH, "top_k": 2,
        "expert_digests": tuple(f"{digest}{e}" for e in range(EXPERTS)),
        "expert_norms": (1.0, 1.0, 2.0, 4.0),
    }  # fmt: skip
    return LayerSums(**known | changes)


def sums_of(*layers: LayerSums, quick: bool = False, **changes: Any) -> CheckpointSums:
    """A checkpoint of these layers with one more tensor of attention and one of anything."""
    digest = (layers or (layer_of(),))[0].router_digest
    rest: Mapping[str, tuple[str, int, str]] = changes.pop("rest", None) or {
        "model.layers.0.self_attn.q_proj.weight": ("attention", 36, f"q {digest}"),
        "model.embed_tokens.weight": ("other", 64, f"e {digest}"),
    }
    return CheckpointSums(quick, layers or (layer_of(),), rest, **{"fresh": False} | changes)


def past_of(*checkpoints: CheckpointSums, steps: Sequence[int | None] | None = None) -> Past:
    """The last of these checkpoints, 100 steps apart, with those before it."""
    known = steps or range(0, 100 * len(checkpoints), 100)
    entries = [
        Entry(step, f"checkpoint-{step}", sums)
        for step, sums in zip(known, checkpoints, strict=True)
    ]
    return Past(RunHistory(entries), len(entries) - 1, load_thresholds())


def experts_of(seed: int, count: int = EXPERTS) -> list[np.ndarray]:
    """A random matrix of each expert."""
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(12, WIDTH)).astype(np.float32) for _ in range(count)]


def with_experts(layer: LayerSums, matrices: Sequence[np.ndarray]) -> LayerSums:
    """The same layer with experts of these matrices: their norms, sketches and distance."""
    sketches = [sketch(m, "up") for m in matrices]
    norms = np.array([np.linalg.norm(m) for m in matrices])
    return dataclasses.replace(
        layer, expert_norms=tuple(map(float, norms)), sketches=pack(sketches),
        expert_distance=mean_distance(np.array(sketches), norms),
    )  # fmt: skip


def piece_of(expert: int, values: np.ndarray | None, role: str = "up") -> Piece:
    """A weight of an expert, as it is read."""
    return Piece(expert, role, f"experts.{expert}.{role}", b"", values)
