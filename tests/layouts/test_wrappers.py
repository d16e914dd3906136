"""Names with what wrappers put into them, in every layout: the same model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.models.loading import load_model
from tests.sharding import save_state
from tests.tiny_models import save_tiny

State = dict[str, torch.Tensor]
WRAPPERS: dict[str, Callable[[str], str]] = {
    "none": lambda name: name,
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP of a compiled model": lambda name: f"module._orig_mod.{name}",
    "FSDP and checkpointing within": lambda name: "_fsdp_wrapped_module." + re.sub(
        r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module._checkpoint_wrapped_module.", name),
    "peft": lambda name: f"base_model.model.{name}",
    "DeepSpeed, Lightning": lambda name: f"_forward_module.{name}",
    "one layer compiled": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
}  # fmt: skip
LAYOUTS: dict[str, Callable[[State, Path], Any]] = {
    "safetensors": lambda state, folder: save_file(
        state, folder / "model.safetensors", {"format": "pt"}),
    "pytorch": lambda state, folder: torch.save(state, folder / "pytorch_model.bin"),
    "pytorch, within a state": lambda state, folder: torch.save(
        {"state_dict": state, "epoch": 1}, folder / "pytorch_model.bin"),
    "torch.distributed": lambda state, folder: save_state({"model": state}, folder),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("qwen3_moe", tmp_path_factory.mktemp("base") / "model")


def loaded(folder: Path) -> State:
    return load_model(open_run(folder).newest, torch.device("cpu"), torch.float32).state_dict()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_come_off_in_every_layout(wrapper: str, base: Path, tmp_path: Path) -> None:
    expected = loaded(base)
    state = {WRAPPERS[wrapper](n): t for n, t in load_file(base / "model.safetensors").items()}
    for layout, save in LAYOUTS.items():
        folder = tmp_path / layout.replace(" ", "-")
        folder.mkdir()
        shutil.copy(base / "config.json", folder)
        save(state, folder)
        found = loaded(folder)
        assert found.keys() == expected.keys(), layout
        assert all(torch.equal(found[name], expected[name]) for name in expected), layout
