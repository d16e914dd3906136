"""A model that is filled from the files by groups: what it is, and what it is never filled with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import IncompleteCheckpointError
from moegeo_cli.models import filling
from moegeo_cli.models.filling import fill_model, open_skeleton
from tests.tiny_models import build_tiny, save_tiny

CPU = torch.device("cpu")
IDS = torch.arange(12)[None]


def test_the_skeleton_has_the_files_shapes_and_no_memory(tiny: Callable[..., Path]) -> None:
    files = open_skeleton(Checkpoint(tiny("mixtral")), CPU, torch.float32)
    parameters = list(files.model.parameters())
    assert {p.device.type for p in parameters} == {"meta"}
    assert sum(p.numel() for p in parameters) == files.index.parameters
    assert files.dtype == torch.float32


@pytest.mark.parametrize("group_bytes", [1, filling.GROUP_BYTES])
def test_it_is_the_saved_model_frozen_whatever_is_converted_together(
    group_bytes: int, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filling, "GROUP_BYTES", group_bytes)
    model = fill_model(None, Checkpoint(tiny("qwen2_moe", 3)), CPU, torch.float32)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, build_tiny("qwen2_moe", 3)(IDS).logits)


def test_a_built_model_is_filled_anew_with_nothing_of_the_last(tiny: Callable[..., Path]) -> None:
    built = fill_model(None, Checkpoint(tiny("mixtral", 0)), CPU, torch.float32)
    again = fill_model(built, Checkpoint(tiny("mixtral", 1)), CPU, torch.float32)
    assert again is built
    with torch.no_grad():
        assert torch.equal(again(input_ids=IDS).logits, build_tiny("mixtral", 1)(IDS).logits)


def test_another_number_of_experts_needs_another_model(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    built = fill_model(None, Checkpoint(tiny("mixtral")), CPU, torch.float32)
    path = save_tiny("mixtral", tmp_path / "m", num_local_experts=4)
    found = fill_model(built, Checkpoint(path), CPU, torch.float32)
    assert found is not built
    assert found.config.num_local_experts == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("lost", ["experts.3.w1.weight", "q_proj.weight"])
def test_what_is_missing_is_never_random_or_of_the_last(
    lost: str, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    path = Path(shutil.copytree(tiny("mixtral"), tmp_path / "m"))
    tensors = load_file(path / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "layers.1." not in n or lost not in n}
    save_file(kept, path / "model.safetensors", {"format": "pt"})
    built = fill_model(None, Checkpoint(tiny("mixtral")), CPU, torch.float32)
    for model in (None, built):
        with pytest.raises(IncompleteCheckpointError) as error:
            fill_model(model, Checkpoint(path), CPU, torch.float32)
        told = f"{error.value.message} {error.value.found}"
        assert "layers.1" in told
