"""The summary of a checkpoint's files: what it holds of them, and what changes it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums, sum_checkpoint
from moegeo_cli.errors import MoegeoError

Q = "model.layers.1.self_attn.q_proj.weight"
NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture
def path(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(tiny("mixtral"), tmp_path / "m"))


def sums(path: Path, **options: Any) -> CheckpointSums:
    return sum_checkpoint(Checkpoint(path), **{"quick": False, **options})


def change(path: Path, name: str, do: Callable[[torch.Tensor], Any]) -> None:
    tensors = load_file(path / "model.safetensors")
    do(tensors[name])
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def set_config(path: Path, **values: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **values}))


def test_every_tensor_is_in_a_layer_or_in_the_rest(path: Path) -> None:
    found, tensors = sums(path), load_file(path / "model.safetensors")
    own = {n for n in tensors if "block_sparse_moe" in n}
    assert set(found.rest) == set(tensors) - own
    matrices = {n: kind for n, (kind, *_) in found.rest.items() if tensors[n].ndim == 2}
    assert {n for n, kind in matrices.items() if kind == "attention"} == {
        n for n in tensors if "self_attn" in n
    }
    assert all(count == tensors[n].numel() for n, (_, count, _) in found.rest.items())
    gates = sum(t.numel() for n, t in tensors.items() if n.endswith("gate.weight"))
    assert found.elements == {
        "router": gates, "experts": sum(tensors[n].numel() for n in own) - gates
    }  # fmt: skip
    assert len(found.layers) == 3
    norms = np.linalg.norm(tensors["model.layers.1.block_sparse_moe.gate.weight"].numpy(), axis=1)
    np.testing.assert_allclose(found.layers[1].row_norms, norms, rtol=1e-5)
    assert found.facts["model_type"] == "mixtral"
    assert (found.facts["experts"], found.facts["top_k"]) == (6, 2)
    assert found.bytes_read >= (path / "model.safetensors").stat().st_size - 10_000


def test_one_changed_value_changes_its_own_digest_alone(path: Path) -> None:
    before = sums(path)
    change(path, Q, lambda t: t[0].__setitem__(0, t[0, 0] + 1))
    after = sums(path)
    assert [n for n in before.rest if before.rest[n] != after.rest[n]] == [Q]
    assert before.layers == after.layers
    change(path, "model.layers.2.block_sparse_moe.experts.4.w2.weight", lambda t: t.mul_(2))
    last = sums(path)
    assert last.rest == after.rest
    moved = [
        (layer, expert)
        for layer, (one, other) in enumerate(zip(after.layers, last.layers, strict=True))
        for expert, pair in enumerate(zip(one.expert_digests, other.expert_digests, strict=True))
        if pair[0] != pair[1]
    ]
    assert moved == [(2, 4)]


def test_quickly_only_routers_and_vectors_are_read(path: Path) -> None:
    whole, quick = sums(path), sums(path, quick=True)
    assert set(quick.rest) == {n for n in whole.rest if "norm" in n}
    assert quick.bytes_read < whole.bytes_read / 5
    assert [x.router_digest for x in quick.layers] == [x.router_digest for x in whole.layers]
    assert quick.alignment is None
    assert whole.alignment is not None


def test_norms_that_are_constant_are_those_of_a_model_before_training(path: Path) -> None:
    assert sums(path).fresh is True
    change(path, NORM, lambda t: t.mul_(torch.linspace(0.9, 1.1, len(t))))
    assert sums(path).fresh is False


def test_a_setting_that_says_frozen_is_named(path: Path) -> None:
    assert sums(path).frozen_by == ()
    set_config(path, freeze_router=True, frozen_layers=[], peft={"freeze_experts": 2})
    assert sums(path).frozen_by == (
        "config.json: freeze_router = True", "config.json: freeze_experts = 2"
    )  # fmt: skip


def test_progress_adds_up_to_what_was_read(path: Path) -> None:
    parts: list[int] = []
    found = sums(path, advance=parts.append)
    assert sum(parts) == found.bytes_read
    assert len(parts) > 10, "told while it reads"


def test_a_router_that_is_missing_is_an_error(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    gone = "model.layers.1.block_sparse_moe.gate.weight"
    save_file({n: t for n, t in tensors.items() if n != gone}, path / "model.safetensors")
    with pytest.raises(MoegeoError, match="router"):
        sums(path)
