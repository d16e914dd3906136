"""Weights that transformers loads without a word although they were lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.errors import UnsupportedLayoutError
from moegeo_cli.models.damage import Damage, find_damage
from moegeo_cli.models.loading import load_model, swap_weights
from moegeo_cli.models.model_config import auto_class
from moegeo_cli.routers.finding import find_routers
from tests.command import call
from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import CONFIGS

CPU = torch.device("cpu")
# type -> a tensor of expert 2 in layer 1 as the file names it, and where expert 2 lies in it
EXPERT_2 = {
    "mixtral": ("model.layers.1.block_sparse_moe.experts.2.w1.weight", ...),
    "qwen3_moe": ("model.layers.1.mlp.experts.2.down_proj.weight", ...),
    "deepseek_v3": ("model.layers.1.mlp.experts.2.up_proj.weight", ...),
    "gpt_oss": ("model.layers.1.mlp.experts.gate_up_proj", 2),
    "granitemoe": ("model.layers.1.block_sparse_moe.input_linear.weight", 2),
}


def damage(path: Path, name: str, place: Any, value: float, rows: slice = slice(None)) -> None:
    """Overwrite rows of an expert's matrix in the file."""
    state = load_file(path / "model.safetensors")
    state[name][place][rows] = value
    save_file(state, path / "model.safetensors", {"format": "pt"})


@pytest.fixture
def copy(tiny: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    def make(model_type: str, seed: int = 0) -> Path:
        return Path(shutil.copytree(tiny(model_type, seed), tmp_path / f"{model_type}-{seed}"))

    return make


def found_in(path: Path) -> dict[int, Damage | None]:
    routers = find_routers(load_model(Checkpoint(path), CPU, torch.float32))
    return {router.layer: find_damage(router) for router in routers}


@pytest.mark.parametrize("model_type", CONFIGS)
def test_sound_experts_are_not_called_damaged(model_type: str, tiny: Callable[..., Path]) -> None:
    found = found_in(tiny(model_type))
    assert found
    assert set(found.values()) == {Damage((), ())}


@pytest.mark.parametrize("model_type", EXPERT_2)
@pytest.mark.parametrize(
    ("value", "rows", "expected"),
    [
        (float("nan"), slice(0, 1), Damage((2,), ())),
        (float("inf"), slice(0, 1), Damage((2,), ())),
        (0.0, slice(None), Damage((), (2,))),
        (0.0, slice(3, 5), Damage((), (2,))),
    ],
    ids=["nan", "inf", "zeros", "a block of zeros"],
)
def test_a_damaged_expert_is_named(
    model_type: str, value: float, rows: slice, expected: Damage, copy: Callable[..., Path]
) -> None:
    path = copy(model_type)
    name, place = EXPERT_2[model_type]
    damage(path, name, place, value, rows)
    found = found_in(path)
    assert found.pop(1) == expected
    assert set(found.values()) == {Damage((), ())}


def test_damage_is_named_where_experts_lie_one_below_another() -> None:
    from tests.architectures.zoo import tiny_config

    model = auto_class(tiny_config("dbrx"))[0].from_config(tiny_config("dbrx"))
    router = find_routers(model)[-1]
    assert find_damage(router) == Damage((), ())
    weight = dict(router.parent.named_parameters())["experts.mlp.v1"]
    with torch.no_grad():
        weight[5 * len(weight) // router.experts] = 0.0
    assert find_damage(router) == Damage((), (5,))


def test_rows_that_are_zero_in_every_expert_are_padding(copy: Callable[..., Path]) -> None:
    path = copy("gpt_oss")
    damage(path, "model.layers.1.mlp.experts.down_proj", slice(None), 0.0)
    state = load_file(path / "model.safetensors")
    state["model.layers.2.mlp.experts.down_proj"][:, 3:] = 0.0
    save_file(state, path / "model.safetensors", {"format": "pt"})
    found = found_in(path)
    assert found[1] == Damage((), tuple(range(6)))  # the whole tensor is zeros
    assert found[2] == Damage((), ())


def test_weights_that_are_not_in_memory_were_not_looked_at(tiny: Callable[..., Path]) -> None:
    model = load_model(Checkpoint(tiny("mixtral")), CPU, torch.float32).to("meta")
    assert {find_damage(router) for router in find_routers(model)} == {None}


@pytest.mark.parametrize(
    ("value", "status", "words"),
    [(float("nan"), "failing", "expert 2 in layer 1 are NaN"), (0.0, "watch", "are zeros")],
)
def test_the_report_names_damaged_experts(
    value: float, status: str, words: str, copy: Callable[..., Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = copy("mixtral")
    damage(path, *EXPERT_2["mixtral"], value)
    probe = write_probe(tmp_path / "probe.jsonl", random_ids([9] * 40))
    outcome = call(capsys, "analyze", path, "--probe", probe, "--format", "json")
    assert outcome.code == 0, outcome.err
    layer = outcome.document["checkpoints"][0]["layers"][1]
    assert [2] in (layer["experts_zero"], layer["experts_nonfinite"])
    found = {f["name"]: f for f in outcome.document["verdict"]["findings"]}
    assert found["experts-damaged"]["severity"] == status
    assert words in found["experts-damaged"]["message"]
    again = call(capsys, "analyze", path, "--probe", probe, "--format", "json")
    assert again.out == outcome.out  # from the store


def test_a_router_that_lost_rows_names_their_experts(
    copy: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy("mixtral")
    damage(path, "model.layers.1.block_sparse_moe.gate.weight", ..., 0.0, slice(4, 6))
    probe = write_probe(tmp_path / "probe.jsonl", random_ids([9] * 40))
    document = call(capsys, "analyze", path, "--probe", probe, "--format", "json").document
    assert [x["zero_rows"] for x in document["checkpoints"][0]["layers"]] == [[], [4, 5], []]
    found = {f["name"]: f for f in document["verdict"]["findings"]}
    assert "experts 4, 5 in layer 1" in found["router-zero"]["message"]


def save_shards(tiny_path: Path, path: Path) -> list[Path]:
    """The checkpoint in three shards with an index."""
    shutil.copytree(tiny_path, path)
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    names, weight_map = sorted(state), {}
    for number in range(3):
        shard = f"model-0000{number + 1}-of-00003.safetensors"
        part = {name: state[name] for name in names[number::3]}
        save_file(part, path / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(part, shard)
    (path / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return sorted(path.glob("*.safetensors"))


def test_exchanged_shards_are_refused_by_name(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = save_shards(tiny("mixtral"), tmp_path / "run")
    first.rename(tmp_path / "away")
    second.rename(first)
    (tmp_path / "away").rename(second)
    for command in ("analyze", "inspect"):
        outcome = call(capsys, command, tmp_path / "run")
        assert outcome.code == 2
        assert "lies in model-00002-of-00003.safetensors" in outcome.err
        assert "shards were exchanged" in outcome.err


def test_weights_that_are_there_twice_are_refused(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_shards(tiny("mixtral"), tmp_path / "run")
    shutil.copy(tiny("mixtral", 1) / "model.safetensors", tmp_path / "run")
    outcome = call(capsys, "analyze", tmp_path / "run")
    assert outcome.code == 2
    assert "holds its weights twice" in outcome.err


def test_the_same_weights_twice_are_no_reason_to_refuse(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("mixtral")
    save_shards(model, tmp_path / "run")
    shutil.copy(model / "model.safetensors", tmp_path / "run")
    state = load_file(model / "model.safetensors")
    torch.save(state, tmp_path / "run" / "pytorch_model.bin")
    for most in (4 * 2**20, 64):  # compared whole, then by some of their rows
        monkeypatch.setattr("moegeo_cli.checkpoints.two_saves.COMPARED_BYTES", most)
        assert open_weights(tmp_path / "run").layout == "safetensors"
    save_torch_state_dict(state, tmp_path / "run", max_shard_size="8KB", safe_serialization=False)
    assert open_weights(tmp_path / "run").layout == "safetensors"
    gate = next(name for name in state if name.endswith("gate.weight"))
    state[gate][1, 3] += 1e-3
    torch.save(state, tmp_path / "run" / "pytorch_model.bin")
    with pytest.raises(UnsupportedLayoutError, match="different values"):
        open_weights(tmp_path / "run")


def test_an_index_without_shards_is_a_leftover(tiny: Callable[..., Path], tmp_path: Path) -> None:
    for shard in save_shards(tiny("mixtral"), tmp_path / "run"):
        shard.unlink()
    shutil.copy(tiny("mixtral", 1) / "model.safetensors", tmp_path / "run")
    assert open_weights(tmp_path / "run").layout == "safetensors"
    model = swap_weights(
        load_model(Checkpoint(tiny("mixtral")), CPU, torch.float32),
        Checkpoint(tmp_path / "run"),
        CPU,
    )
    expected = load_model(Checkpoint(tiny("mixtral", 1)), CPU, torch.float32)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_files_beside_the_weights_are_not_swapped_in(
    tiny: Callable[..., Path], copy: Callable[..., Path]
) -> None:
    path = copy("mixtral")
    other = load_file(tiny("mixtral", 1) / "model.safetensors")
    save_file(other, path / "z-average.safetensors", {"format": "pt"})
    model = swap_weights(
        load_model(Checkpoint(tiny("mixtral", 1)), CPU, torch.float32), Checkpoint(path), CPU
    )
    for one, two in zip(
        model.parameters(),
        load_model(Checkpoint(path), CPU, torch.float32).parameters(),
        strict=True,
    ):
        assert torch.equal(one, two)
