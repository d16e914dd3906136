"""A run whose selection bias rises with the load is named; the sample that balances is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze
from moegeo_cli.records import Finding, RunRecord

SAMPLE = Path(__file__).parents[2] / "sample_checkpoints" / "balanced-glm4-moe"
RATE = 0.01


def found(run: RunRecord) -> Finding | None:
    assert run.verdict is not None
    return next((f for f in run.verdict.findings if f.name == "bias-wrong-sign"), None)


def test_the_sign_of_a_bias_s_update_is_told_from_the_run(tmp_path: Path) -> None:
    options = {"max_tokens": 4096, "baseline": "none", "cache": False}
    good = analyze(SAMPLE, steps="100,200,300", **options)
    assert found(good) is None
    [*_, last] = good.dynamics
    for row in last["layers"]:
        assert row["metrics"]["bias_response"].value < 0.0
    run = tmp_path / "run"
    shutil.copytree(SAMPLE / "checkpoint-100", run / "checkpoint-100")
    shutil.copytree(SAMPLE / "checkpoint-100", run / "checkpoint-200")
    file = run / "checkpoint-200" / "model.safetensors"
    state = load_file(file)
    for layer in good.checkpoints[0].layers:
        assert layer.load is not None
        load = torch.tensor(layer.load)
        state[f"{layer.router}.e_score_correction_bias"] += RATE * torch.sign(load - load.mean())
    save_file(state, file, {"format": "pt"})
    wrong = found(analyze(run, **options))
    assert wrong is not None
    assert wrong.severity == "watch"
    assert wrong.layers == (1, 2)
