"""The trained samples' experts differ: nothing is found where nothing is redundant."""

from __future__ import annotations

from pathlib import Path

import pytest

from moegeo_cli import analyze, experts

FOLDER = Path(__file__).parents[2] / "sample_checkpoints"
NAME = "redundant-experts"


@pytest.mark.parametrize(
    "name",
    ["healthy-qwen3-moe", "unbalanced-mixtral", "misaligned-qwen3-moe", "balanced-glm4-moe"],
)
def test_no_trained_sample_has_redundant_experts(name: str, tmp_path: Path) -> None:
    record = experts(FOLDER / name, cache_dir=tmp_path, max_tokens=8192)
    assert [(c.name, c.outcome) for c in record.checks] == [(NAME, "passed")]
    nearest = [e.nearest_alignment for layer in record.layers for e in layer.expert]
    assert all(m is not None and m.value is not None and m.value < 0.3 for m in nearest)
    if name != "healthy-qwen3-moe":
        return
    run = analyze(FOLDER / name, cache_dir=tmp_path, max_tokens=8192, latest=True)
    assert run.verdict is not None
    assert {c.name: c.outcome for c in run.verdict.checks}[NAME] == "passed"
    assert all(f.name != NAME for f in run.verdict.findings)
    assert run.verdict.routing == "healthy"
