"""The shipped runs as files: whole, small, in the Trainer's layout, really trained."""

from __future__ import annotations

import itertools
import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from moegeo_cli.probes.loading import BUNDLED
from sample_checkpoints.recipes import RECIPES
from sample_checkpoints.text import PASSAGE_BYTES, split_text, windows_of

FOLDER = Path(__file__).parents[2] / "sample_checkpoints"
STEPS = [0, 100, 200, 300, 400]


def checkpoints(name: str) -> list[Path]:
    return sorted(FOLDER.joinpath(name).glob("checkpoint-*"), key=lambda p: int(p.name[11:]))


@pytest.mark.parametrize("name", RECIPES)
def test_layout_is_the_trainers(name: str) -> None:
    found = checkpoints(name)
    assert [int(p.name.removeprefix("checkpoint-")) for p in found] == STEPS
    for step, path in zip(STEPS, found, strict=True):
        state = json.loads((path / "trainer_state.json").read_text())
        assert state["global_step"] == step
        assert (
            json.loads((path / "config.json").read_text())["model_type"] == RECIPES[name].model_type
        )
        with safe_open(path / "model.safetensors", "pt") as file:
            count = sum(file.get_tensor(k).numel() for k in file.keys())  # noqa: SIM118
            assert {file.get_tensor(k).dtype for k in list(file.keys())[:3]} == {torch.float32}
        assert 80_000 < count < 200_000
    log = [e for e in state["log_history"] if "loss" in e]
    assert len(log) == 40
    assert log[-1]["loss"] < log[0]["loss"]
    assert all(e["num_input_tokens_seen"] > 0 for e in log)


def test_everything_together_is_small() -> None:
    files = [
        p for name in RECIPES for p in FOLDER.joinpath(name).rglob("*") if ".moegeo" not in p.parts
    ]
    assert sum(p.stat().st_size for p in files if p.is_file()) < 10_000_000


def test_no_file_but_what_an_analysis_reads() -> None:
    allowed = {"config.json", "model.safetensors", "trainer_state.json", "optimizer.pt"}
    names = {p.name for name in RECIPES for path in checkpoints(name) for p in path.iterdir()}
    assert names == allowed
    kept = [p for name in RECIPES for p in FOLDER.joinpath(name).rglob("optimizer.pt")]
    assert [p.parent.name for p in kept] == ["checkpoint-400"]


def biases(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path / "model.safetensors", "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys() if k.endswith("e_score_correction_bias")}  # noqa: SIM118


def test_the_selection_biases_move_and_change_what_is_selected() -> None:
    """More than 1% of the tokens of a real passage choose otherwise without them."""
    from transformers import AutoModelForCausalLM

    paths = checkpoints("balanced-glm4-moe")
    history = [biases(p) for p in paths]
    for key in history[0]:
        assert not history[0][key].any()
        for before, after in itertools.pairwise(history):
            assert (before[key] != after[key]).any()
    model = AutoModelForCausalLM.from_pretrained(paths[-1]).eval()
    rows = [json.loads(line)["text"] for line in BUNDLED.read_text("utf-8").splitlines()[:32]]
    ids = torch.tensor([list(row.encode())[:256] for row in rows])
    routers = {
        name: module for name, module in model.named_modules()
        if hasattr(module, "e_score_correction_bias")
    }  # fmt: skip
    assert len(routers) == 2
    chosen: dict[str, Any] = {}
    for name, module in routers.items():
        module.register_forward_hook(lambda m, a, o, n=name: chosen.update({n: o[-1]}))
        module.register_forward_pre_hook(lambda m, a, n=name: chosen.update({n + ".x": a[0]}))
    with torch.no_grad():
        model(input_ids=ids)
        for name, module in routers.items():
            biased = chosen[name].sort(-1).values
            module.e_score_correction_bias.zero_()
            plain = module(chosen[name + ".x"])[-1].sort(-1).values
            changed = (biased != plain).any(-1).float().mean()
            assert changed > 0.01, name


def test_training_validation_and_probe_share_no_window() -> None:
    """No 64 bytes of the shipped probe stand in any text that the samples were trained on."""
    splits = split_text()
    shipped = [
        json.loads(line)["text"].encode() for line in BUNDLED.read_text("utf-8").splitlines()
    ]
    probe = {w for d in splits.probe for w in windows_of(d.data)}
    validation = {w for d in splits.validation for w in windows_of(d.data)}
    training = {w for d in splits.training for w in windows_of(d.data)}
    assert splits.left_out > 0, "the check has something to do"
    assert probe.isdisjoint(validation)
    assert probe.isdisjoint(training)
    assert validation.isdisjoint(training)
    assert all(len(t) > PASSAGE_BYTES - 4 for t in shipped)
    if {d.data for d in splits.probe} != set(shipped):
        assert platform.python_version() != "3.11.7", "the probe is not what its source gives"
        pytest.skip("this Python's own files are not those that the shipped probe was made of")
