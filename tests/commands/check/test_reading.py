"""Experts and routers piece by piece are what the files hold, in every layout and form."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.folders import read_config
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.commands.check.reading import MoELayer, read_layers
from tests.tiny_models import save_tiny

FORMS = Path(__file__).parents[2] / "forms" / "files"
TYPES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "granitemoe", "deepseek_v3")


def layers_of(path: Path) -> list[MoELayer]:
    index = Checkpoint(path).weights
    architecture = describe_architecture(read_config(path))
    routers = [r for r in find_router_tensors(index, architecture) if r.main]
    return list(read_layers(index, routers, architecture))


@pytest.mark.parametrize("model_type", TYPES)
def test_every_expert_of_every_layer_is_read_once_with_its_own_values(
    model_type: str, tmp_path: Path
) -> None:
    path = save_tiny(model_type, tmp_path / "m")
    stored = load_file(path / "model.safetensors")
    layers = layers_of(path)
    seen: dict[str, int] = {}
    for layer in layers:
        weight = stored[layer.router.weight].float().numpy()
        assert np.array_equal(layer.weight_ED, weight)
        assert layer.weight_ED is not None
        pieces = list(layer.read_experts())
        assert {p.expert for p in pieces} == set(range(len(weight)))
        for piece in pieces:
            whole = stored[piece.name]
            fused = ".experts." in piece.name and f".experts.{piece.expert}." not in piece.name
            own: Any = whole[piece.expert] if fused or "_linear" in piece.name else whole
            assert piece.values is not None
            assert np.array_equal(piece.values, own.float().numpy())
            raw = own.contiguous().numpy().tobytes()
            assert piece.digest == hashlib.sha256(raw).digest()[:16]
            seen[piece.name] = seen.get(piece.name, 0) + 1
    of_experts = {
        n for n in stored if (".experts." in n or "_linear.weight" in n) and "shared" not in n
    }
    assert set(seen) == of_experts


def test_a_pickled_file_and_bfloat16_give_the_same_values(tmp_path: Path) -> None:
    from tests.tiny_models import build_tiny

    model = build_tiny("gpt_oss").bfloat16()
    model.save_pretrained(tmp_path / "safe")
    model.save_pretrained(tmp_path / "pickled")
    state = load_file(tmp_path / "pickled" / "model.safetensors")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pickled" / "pytorch_model.bin")
    for one, other in zip(
        layers_of(tmp_path / "safe"), layers_of(tmp_path / "pickled"), strict=True
    ):
        assert one.router_digest == other.router_digest
        for a, b in zip(one.read_experts(), other.read_experts(), strict=True):
            assert (a.expert, a.role, a.digest) == (b.expert, b.role, b.digest)
            assert np.array_equal(a.values, b.values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path", sorted(p for p in FORMS.iterdir() if p.is_dir()), ids=lambda p: p.name
)
def test_quantised_experts_have_the_values_that_the_model_has(path: Path) -> None:
    index = Checkpoint(path).weights
    unknown = index.obstacle is not None
    for layer in layers_of(path):
        for piece in layer.read_experts():
            if unknown:
                continue
            expected = index.tensor(piece.name).float().numpy()
            if piece.values is None:
                assert piece.reason
                continue
            if expected.ndim > piece.values.ndim:
                expected = expected[piece.expert]
            assert np.array_equal(piece.values, expected)
