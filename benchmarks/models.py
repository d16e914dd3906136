"""Random models and probes of a given size. Timings do not depend on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.measuring.probe import open_probe
from moegeo_cli.models.given import Models
from moegeo_cli.models.loading import load_model
from moegeo_cli.probes import Probe
from moegeo_cli.probes import Sequence as ProbeSequence
from moegeo_cli.settings import Settings

VOCABULARY, LENGTH = 512, 256


@dataclass(frozen=True)
class Size:
    """A Qwen3-MoE: width D, layers, experts E, experts per token K, expert width F."""

    width: int
    layers: int
    experts: int
    top_k: int
    expert_width: int


SMALL = Size(256, 6, 16, 2, 256)
LARGE = Size(1024, 8, 64, 8, 256)
# Routers and experts as deployed models have them (Qwen3-30B-A3B, DeepSeek-V3), narrow.
DEEP, WIDE = Size(64, 48, 128, 8, 32), Size(64, 58, 256, 8, 16)


def build_model(size: Size, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_experts=size.experts,
        num_experts_per_tok=size.top_k,
        moe_intermediate_size=size.expert_width,
        intermediate_size=2 * size.width,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=size.width // 8,
        norm_topk_prob=True,
        decoder_sparse_step=1,
    )
    return Qwen3MoeForCausalLM(config).to(dtype).eval().requires_grad_(False)


def build_probe(tokens: int, length: int = LENGTH, seed: int = 0) -> Probe:
    generator = np.random.default_rng(seed)
    sequences = tuple(
        ProbeSequence(input_ids=generator.integers(0, VOCABULARY, length), labels=None, domain=None)
        for _ in range(tokens // length)
    )
    return Probe.of(sequences, name=f"random-{tokens}")


def open_sample(run: Path, tokens: Sequence[int]) -> tuple[Any, list[Probe]]:
    """The newest model of a run, and the bundled probe at each of these sizes."""
    folder = open_run(run)
    model = load_model(folder.newest, torch.device("cpu"), torch.float32)
    return model, [open_probe(folder, None, n, Models()) for n in tokens]


def build_measurer(model: Any, probe: Probe, settings: Settings) -> Measurer:
    config = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    groups_S = group_sequences(len(probe.sequences), settings.seed)
    return Measurer(describe_architecture(config), config, probe, groups_S, settings)
