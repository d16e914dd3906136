"""Every tensor of a checkpoint is the model's, is known to be left out, or is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError
from moegeo_cli.models.accounting import account_for, attach_weight_facts, say_weights, weight_facts
from moegeo_cli.models.conversion import build_skeleton

CPU = torch.device("cpu")
FOUND = {"dequantised": 0, "scheme": (), "adapter": None, "unwrapped": (), "unused": {}}


@pytest.fixture
def path(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("mixtral"), tmp_path / "m"))


def account(path: Path, **more: Any) -> tuple[Any, dict[str, int]]:
    checkpoint = Checkpoint(path)
    model = build_skeleton(checkpoint, torch.float32, CPU)
    return model, account_for(model, checkpoint.weights, **more).counts


def add(path: Path, **tensors: torch.Tensor) -> None:
    file = path / "model.safetensors"
    save_file({**load_file(file), **tensors}, file, {"format": "pt"})


def test_a_whole_checkpoint_leaves_nothing_out(path: Path) -> None:
    model, left_out = account(path)
    assert left_out == {}
    assert weight_facts(model) is not None
    assert say_weights(model) == []


def test_what_is_known_to_be_unused_is_counted_and_said(path: Path) -> None:
    add(path, **{"model.layers.3.eh_proj.weight": torch.ones(2, 2)})  # the config counts 3 layers
    model, left_out = account(path)
    [(why, count)] = left_out.items()
    assert count == 1
    assert "multi-token prediction" in why
    assert say_weights(model) == [f"weights: 1 tensors left out: {why}"]


def test_a_tensor_that_nothing_uses_is_refused_by_name(path: Path) -> None:
    add(path, **{"model.layers.1.self_attn.q_proj.weight_of_another": torch.ones(2, 2)})
    with pytest.raises(UnsupportedLayoutError) as error:
        account(path)
    assert "q_proj.weight_of_another" in f"{error.value.message} {error.value.found}"
    with pytest.raises(IncompleteCheckpointError) as incomplete:
        account(path, missing=["model.layers.1.self_attn.q_proj.weight"])
    assert "q_proj" in f"{incomplete.value.message} {incomplete.value.found}"


def test_a_parameter_is_not_filled_from_whole_numbers(path: Path) -> None:
    name = "model.layers.0.self_attn.k_proj.weight"
    shape = load_file(path / "model.safetensors")[name].shape
    add(path, **{name: torch.ones(shape, dtype=torch.int8)})
    with pytest.raises(UnsupportedLayoutError) as error:
        account(path)
    assert "k_proj" in f"{error.value.message} {error.value.found}"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, []),
        ({"dequantised": 3, "scheme": ("int8", "nf4")}, ["3 tensors dequantised (int8, nf4)"]),
        ({"unwrapped": ("module.", "_orig_mod.")}, ["module., _orig_mod. taken off names"]),
        ({"unused": {"heads": 2}}, ["2 tensors left out: heads"]),
    ],
)  # fmt: skip
def test_what_was_done_to_weights_is_said(found: dict[str, Any], words: list[str]) -> None:
    model = nn.Module()
    model.moegeo_weights = {**FOUND, **found}  # type: ignore[assignment]
    said = [f"weights: {line}" for line in words]
    assert say_weights(model) == said
    assert say_weights(SimpleNamespace(inner=model)) == said, "within an adapter of ours"


def test_a_model_without_files_has_nothing_to_tell() -> None:
    model = nn.Module()
    assert weight_facts(model) is None
    assert say_weights(model) == []
    attach_weight_facts(model, WeightIndex(Path(), "safetensors", {}), {})  # as they are stored
    assert weight_facts(model) is None
