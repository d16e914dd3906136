"""Fresh experts in trained checkpoints are found with their place; trained ones are not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import check
from tests.commands.check.planting import State, find, is_expert, names
from tests.tiny_models import save_tiny

SAMPLES = Path(__file__).parents[3] / "sample_checkpoints"
# Trained samples, each of another family, with the layers that have routers.
TRAINED = {
    "healthy-qwen3-moe": (0, 1, 2),
    "unbalanced-mixtral": (0, 1, 2),
    "balanced-glm4-moe": (1, 2),
}


def replant(sample: str, folder: Path, change: Callable[[State], None]) -> Path:
    """The newest checkpoint of a sample with some of its tensors changed."""
    path = Path(shutil.copytree(SAMPLES / sample / "checkpoint-400", folder / "checkpoint-400"))
    file = path / "model.safetensors"
    state = load_file(file)
    change(state)
    save_file(state, file, {"format": "pt"})
    return path


def refresh(which: Callable[[str], bool], uniform: bool = False) -> Callable[[State], None]:
    """Experts' matrices as they are initialised."""

    def change(state: State) -> None:
        generator = torch.Generator().manual_seed(3)
        for name in sorted(state):
            if is_expert(name) and which(name):
                if uniform:
                    edge = state[name].shape[-1] ** -0.5
                    state[name].uniform_(-edge, edge, generator=generator)
                else:
                    state[name].normal_(0.0, 0.02, generator=generator)

    return change


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("sample", TRAINED)
def test_a_layer_of_fresh_experts_is_named(sample: str, *, uniform: bool, tmp_path: Path) -> None:
    last = TRAINED[sample][-1]
    path = replant(sample, tmp_path, refresh(lambda n: f".layers.{last}." in n, uniform))
    found = find(check(path), "experts-untrained")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (last,))
    assert f"all experts of layer {last}" in found.message


@pytest.mark.parametrize("sample", TRAINED)
def test_one_fresh_expert_is_named(sample: str, tmp_path: Path) -> None:
    first = TRAINED[sample][0]
    path = replant(
        sample, tmp_path, refresh(lambda n: f".layers.{first}." in n and ".experts.3." in n)
    )
    found = find(check(path), "experts-untrained")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (first,))
    assert f"expert 3 in layer {first}" in found.message


@pytest.mark.parametrize("sample", TRAINED)
def test_all_fresh_experts_are_named_where_attention_was_trained(
    sample: str, tmp_path: Path
) -> None:
    found = find(check(replant(sample, tmp_path, refresh(lambda n: True))), "experts-untrained")
    assert found is not None
    assert found.layers == TRAINED[sample]
    assert "every layer" in found.message


def test_in_the_first_fifth_of_training_it_is_info(tmp_path: Path) -> None:
    path = replant("healthy-qwen3-moe", tmp_path, refresh(lambda n: ".layers.1." in n))
    state = path / "trainer_state.json"
    state.write_text(state.read_text().replace('"max_steps": 400', '"max_steps": 4000'))
    found = find(check(path), "experts-untrained")
    assert found is not None
    assert found.severity == "info"
    assert "early in training" in found.message


@pytest.mark.parametrize("sample", sorted(p.parent.name for p in SAMPLES.glob("*/checkpoint-0")))
def test_trained_experts_and_fresh_models_are_not_named(sample: str) -> None:
    record = check(SAMPLES / sample, cache=False)
    for checkpoint in record.checkpoints:
        assert checkpoint.verdict is not None
        assert "experts-untrained" not in {f.name for f in checkpoint.verdict.findings}


def test_where_nothing_was_trained_it_is_skipped(tmp_path: Path) -> None:
    record = check(save_tiny("qwen3_moe", tmp_path / "m"))
    assert record.verdict is not None
    [told] = [c for c in record.verdict.checks if c.name == "experts-untrained"]
    assert told.outcome == "skipped"
    assert told.reason is not None
    assert "fresh experts would not stand out" in told.reason


def test_an_expert_with_broken_values_is_left_to_other_rules(tmp_path: Path) -> None:
    def spoil(state: State) -> None:
        state["model.layers.1.mlp.experts.2.up_proj.weight"][0, 0] = float(np.nan)
        state["model.layers.2.mlp.experts.4.down_proj.weight"].zero_()

    assert names(check(replant("healthy-qwen3-moe", tmp_path, spoil))) == {"experts-damaged"}
