"""An accelerator gives the CPU's numbers: `pytest -m gpu`, where there is one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli import analyze, experts, routing
from tests.tiny_models import CONFIGS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here"),
]
# Discrete: one token whose choice rounding decides moves them by more than rounding.
DISCRETE = {"near_ties", "dead_experts", "low_sample_experts"}


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    rows = [[int(v) for v in generator.integers(0, 64, 5 + (7 * i) % 29)] for i in range(40)]
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_metrics_agree_with_the_cpu(
    model_type: str, tiny: Callable[..., Path], probe: Path
) -> None:
    path = tiny(model_type, 3)
    one, other = (
        analyze(path, probe=probe, baseline="none", cache=False, device=device).checkpoints[0]
        for device in ("cpu", "cuda")
    )
    assert other.replay["device"] == "cuda"
    assert other.loss.value == pytest.approx(one.loss.value, rel=1e-5)
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        for name in ours.metrics.keys() - DISCRETE:
            if ours.metrics[name].value is not None:
                assert theirs.metrics[name].value == pytest.approx(
                    ours.metrics[name].value, rel=1e-3, abs=1e-6
                ), name


def test_a_rerun_agrees_with_itself(tiny: Callable[..., Path], probe: Path) -> None:
    path = tiny("qwen3_moe", 3)
    values = [
        analyze(path, probe=probe, baseline="none", cache=False, device="cuda")
        .checkpoints[0].metrics["heterogeneity"].value
        for _ in range(2)
    ]  # fmt: skip
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_a_batch_that_does_not_fit_is_halved(tiny: Callable[..., Path], probe: Path) -> None:
    free, _ = torch.cuda.mem_get_info()
    hold = torch.empty(int(free * 0.98) - 64 * 2**20, dtype=torch.uint8, device="cuda")
    try:
        record = analyze(tiny("mixtral", 0), probe=probe, cache=False, device="cuda")
    finally:
        del hold
    assert record.checkpoints[0].coverage.routers_measured == 3


def test_streamed_layers_give_the_whole_models_numbers_there(
    tiny: Callable[..., Path], probe: Path
) -> None:
    path = tiny("qwen3_moe", 3)
    whole, layers, parts = (
        analyze(path, probe=probe, baseline="none", cache=False, **way).checkpoints[0]
        for way in (
            {"device": "cuda"}, {"device": "cuda", "stream": True}, {"device_map": "auto"},
        )
    )  # fmt: skip
    assert layers.replay["notes"][0].startswith("layers streamed")
    for other in (layers, parts):
        for ours, theirs in zip(whole.layers, other.layers, strict=True):
            for name in ours.metrics.keys() - DISCRETE:
                if ours.metrics[name].value is not None:
                    assert theirs.metrics[name].value == pytest.approx(
                        ours.metrics[name].value, rel=1e-4, abs=1e-6
                    ), name


@pytest.mark.parametrize("model_type", ["deepseek_v3", "gpt_oss", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("lens", [experts, routing])
def test_a_lens_agrees_with_the_cpu(
    lens: Callable[..., Any], model_type: str, tiny: Callable[..., Path], probe: Path
) -> None:
    path = tiny(model_type, 3)
    one, other = (lens(path, probe=probe, cache=False, device=d) for d in ("cpu", "cuda"))
    compared = 0
    for ours, theirs in zip(one.layers, other.layers, strict=True):
        for name, metric in ours.metrics.items():
            assert (metric.value is None) == (theirs.metrics[name].value is None), name
            if metric.value is not None:
                compared += 1
                assert theirs.metrics[name].value == pytest.approx(
                    metric.value, rel=5e-3, abs=1e-4
                ), name
    assert compared > 10
