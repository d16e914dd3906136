"""Runs of tiny models whose weights move from checkpoint to checkpoint, with faults planted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.records import Finding
from moegeo_cli.records.check import CheckRecord
from tests.tiny_models import save_tiny

State = dict[str, torch.Tensor]
# How a family names its router's weight, its experts, and its selection bias.
ROUTER = {
    "qwen3_moe": ".mlp.gate.weight", "mixtral": ".gate.weight", "deepseek_v3": ".mlp.gate.weight",
    "gpt_oss": ".mlp.router.", "olmoe": ".mlp.gate.weight", "glm4_moe": ".mlp.gate.weight",
}  # fmt: skip
BIAS = "e_score_correction_bias"


def is_router(model_type: str, name: str) -> bool:
    return ROUTER[model_type] in name


def is_expert(name: str) -> bool:
    return ".experts." in name and "shared" not in name


def save_run(
    folder: Path,
    model_type: str,
    steps: tuple[int, ...] = (0, 100, 200),
    change: Callable[[int, State, Mapping[int, State]], None] | None = None,
    **config: Any,
) -> Path:
    """A run in which every tensor moves at every step, but for what `change` does.

    `change` is given the step, its tensors to be changed in place, and those of earlier steps.
    """
    generator = torch.Generator().manual_seed(7)
    first = save_tiny(model_type, folder / f"checkpoint-{steps[0]}", **config)
    state = load_file(first / "model.safetensors")
    earlier: dict[int, State] = {}
    for step in steps:
        if step != steps[0]:
            state = {
                n: v + (0.02 * torch.randn(v.shape, generator=generator)).to(v.dtype)
                for n, v in state.items()
            }
        saved = {n: v.clone() for n, v in state.items()}
        if change is not None:
            change(step, saved, earlier)
        earlier[step] = saved
        write(folder / f"checkpoint-{step}", saved, first)
    return folder


def write(path: Path, state: State, like: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if path != like:
        (path / "config.json").write_bytes((like / "config.json").read_bytes())
    save_file(state, path / "model.safetensors", {"format": "pt"})


def find(record: CheckRecord, name: str, state: str = "active") -> Finding | None:
    assert record.verdict is not None
    return next((f for f in record.verdict.findings if (f.name, f.state) == (name, state)), None)


def names(record: CheckRecord) -> set[str]:
    assert record.verdict is not None
    return {f.name for f in record.verdict.findings if f.state == "active"}
