"""The seam to transformers' loader: fails loudly where what lies behind it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.models.conversion import (
    build_skeleton,
    convert_into,
    indexes_experts,
    quiet_transformers,
    trace_sources,
)
from moegeo_cli.models.loading import load_model
from tests.architectures.zoo import save_tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe", "gpt_oss", "granitemoe"])
def test_a_tree_that_is_filled_piece_by_piece_is_the_loaded_model(
    model_type: str, tmp_path: Path
) -> None:
    save_tiny(model_type, tmp_path)
    with quiet_transformers(), safe_open(tmp_path / "model.safetensors", "pt") as file:
        model = build_skeleton(Checkpoint(tmp_path), torch.float32, CPU)
        assert all(p.device.type == "meta" for p in model.parameters())
        sources = trace_sources(model, file.keys())
        assert {n for s in sources.values() for n in s.names} == set(file.keys())
        for target, source in sources.items():
            report = convert_into(
                model, {n: file.get_slice(n) for n in source.names}, CPU, torch.float32
            )
            assert target not in report.missing_keys
            assert not report.mismatched_keys
        model.tie_weights()
    expected = load_model(Checkpoint(tmp_path), CPU, torch.float32)
    for (name, one), (_, other) in zip(
        expected.state_dict().items(), model.state_dict().items(), strict=True
    ):
        assert torch.equal(one, other), name
    for (name, one), (_, other) in zip(
        expected.named_buffers(), model.named_buffers(), strict=True
    ):
        assert torch.equal(one, other), name
    experts = [m for m in model.modules() if type(m).__name__.endswith("Experts")]
    assert experts
    assert all(indexes_experts(module) for module in experts)
