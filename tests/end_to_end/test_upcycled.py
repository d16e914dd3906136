"""An upcycled start: all experts are copies of the first, so that the router's gradient cancels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli import analyze
from tests.tiny_models import build_tiny


def save(path: Path, *, copies: bool, spread: float = 0.0) -> Path:
    """A renormalising model; its experts copies of expert 0, with noise of that share."""
    torch.manual_seed(0)
    model: Any = build_tiny("qwen3_moe", norm_topk_prob=True)
    with torch.no_grad():
        for name, own in model.named_parameters():
            own.normal_(0, 0.15) if own.ndim > 1 else None
            if copies and ".experts." in name and own.ndim == 3:
                own.copy_(own[:1].expand_as(own).clone())
                own.mul_(1 + spread * torch.randn_like(own))
    model.save_pretrained(path)
    return path


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "probe.jsonl"
    rows = [rng.integers(0, 60, 20).tolist() for _ in range(24)]
    path.write_text("".join(f'{{"input_ids": {row}}}\n' for row in rows))
    return path


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_upcycled_start_is_measured(
    *, dtype: str, stream: bool, tmp_path: Path, probe: Path
) -> None:
    save(tmp_path / "run", copies=True)
    run = analyze(tmp_path / "run", probe=probe, dtype=dtype, stream=stream, cache=False,
                  baseline="none")  # fmt: skip
    [checkpoint] = run.checkpoints
    assert run.status == "complete"
    assert checkpoint.loss.value is not None
    assert checkpoint.metrics["fsi"].value is not None
    for layer in checkpoint.layers:  # exactly 0: what was there was rounding
        assert set(layer.fisher_trace or ()) == {0.0}
        assert layer.metrics["heterogeneity_relative"].value is None
    assert any("no gradient beyond rounding" in note for note in checkpoint.replay["notes"])


def test_an_upcycled_start_may_be_the_baseline_of_a_run(tmp_path: Path, probe: Path) -> None:
    save(tmp_path / "run" / "checkpoint-0", copies=True)
    save(tmp_path / "run" / "checkpoint-100", copies=True, spread=0.01)
    run = analyze(tmp_path / "run", probe=probe, cache=False)
    assert [c.step for c in run.checkpoints] == [0, 100]
    last = run.checkpoints[-1]
    assert not any("beyond rounding" in note for note in last.replay["notes"])
    assert all(trace for layer in last.layers for trace in layer.fisher_trace or () if trace)
    assert last.metrics["fhs"].value is None  # nothing to compare with
