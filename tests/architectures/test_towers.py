"""What is particular to models of several towers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from moegeo_cli import analyze
from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from tests.architectures import oracle
from tests.architectures.table import write_probe
from tests.architectures.zoo import save_tiny


def test_ernie_stores_its_routers_transposed_and_two_a_layer(tmp_path: Path) -> None:
    """As published: (hidden, experts) of text, and a second one of images that no text passes."""
    save_tiny("ernie4_5_vl_moe", tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    model = oracle.load_whole(tmp_path)
    for layer in (1, 2, 3):
        own = model.get_submodule(f"model.language_model.layers.{layer}.mlp")
        for name, block in (("weight", own.text_moe), ("weight_1", own.vision_moe)):
            on_disk = stored[f"model.layers.{layer}.mlp.gate.{name}"]
            assert on_disk.shape == (32, 8)
            np.testing.assert_array_equal(on_disk.T, block.gate.weight.numpy())
    assert inspect_checkpoint(tmp_path).routers_found == 3
    write_probe(tmp_path / "probe.jsonl")
    [checkpoint] = analyze(
        tmp_path, probe=tmp_path / "probe.jsonl", baseline="none", cache=False
    ).checkpoints
    assert checkpoint.coverage.routers_found == checkpoint.coverage.routers_measured == 3
    assert "3 routers of image or sound tokens" in " ".join(checkpoint.replay["notes"])


@pytest.mark.slow
def test_a_run_of_a_thinker_with_a_talker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its second checkpoint and its fresh initialisations are the thinker's as well."""
    monkeypatch.setattr("moegeo_cli.measuring.run.FRESH_INITIALISATIONS", 2)
    run = tmp_path / "run"
    for step in (1, 2):
        save_tiny("qwen3_omni_moe", run / f"checkpoint-{step}", seed=step)
    probe = tmp_path / "probe.jsonl"
    ids = write_probe(probe)
    found = analyze(run, probe=probe, baseline="init", cache=False)
    for checkpoint in found.checkpoints:
        model = oracle.load_whole(run / checkpoint.path)
        blocks = oracle.watch_experts(model, ids, 8)
        assert len(checkpoint.layers) == len(blocks) == 4
        for layer, block in zip(checkpoint.layers, blocks, strict=True):
            np.testing.assert_allclose(layer.load, block.counts_E / block.counts_E.sum(), atol=1e-6)
            assert layer.metrics["fhs"].value is not None
