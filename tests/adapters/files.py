"""Adapters that the real peft wrote, and the same merged by its own `merge_and_unload`."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.tiny_models import save_tiny

ATTENTION = {"target_modules": ["q_proj", "o_proj", "q_a_proj"]}
ROUTERS = {"target_modules": [], "target_parameters": ["gate.weight", "router.weight"]}
EXPERTS = {
    "target_modules": [],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}


@dataclass(frozen=True)
class Written:
    """Folders: the base model, the adapter alone, and the merged model."""

    base: Path
    adapter: Path
    merged: Path


def write(
    folder: Path,
    model_type: str,
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    base: Path | None = None,
    changes: dict[str, Any] | None = None,
    **options: Any,
) -> Written:
    """A tiny base model, an adapter of it with random matrices, and both merged by peft."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if base is None:
        base = save_tiny(model_type, folder / "base", **(changes or {}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        if dtype is not torch.float32:
            model.save_pretrained(base)
        tuned = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 6, **options}))
        randomise(tuned, seed)
        tuned.save_pretrained(folder / "adapter")
        tuned.merge_and_unload().save_pretrained(folder / "merged")
    return Written(base, folder / "adapter", folder / "merged")


def randomise(model: Any, seed: int) -> None:
    """Give an adapter's own tensors random values: peft starts with changes of zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "magnitude" in name:
                factor = torch.rand(tensor.shape, generator=generator) + 0.5
                tensor.mul_(factor.to(tensor.dtype))
            elif "lora_" in name or "modules_to_save" in name:
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))


def beside(written: Written, folder: Path) -> Path:
    """The adapter in one folder with its base model's weights."""
    shutil.copytree(written.base, folder)
    for file in written.adapter.iterdir():
        if file.name.startswith("adapter_"):
            shutil.copy(file, folder)
    return folder


def run_of(adapters: list[Path], folder: Path) -> Path:
    """A Trainer's run of adapters, with the state that it writes last."""
    for place, adapter in enumerate(adapters, 1):
        checkpoint = folder / f"checkpoint-{10 * place}"
        shutil.copytree(adapter, checkpoint)
        (checkpoint / "trainer_state.json").write_text(json.dumps({"global_step": 10 * place}))
    return folder


def edit(folder: Path, **values: Any) -> None:
    """Change an adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
