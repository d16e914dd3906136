"""Checkpoints that people have and moegeo cannot measure: the error names what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    PathError,
    ShapeError,
    UnsupportedArchitectureError,
    UnsupportedLayoutError,
)

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
EXPERT = "model.layers.1.block_sparse_moe.experts.2.w1.weight"


@pytest.fixture
def base(tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A checkpoint to be changed."""
    folder = tmp_path / "base"
    shutil.copytree(tiny("mixtral"), folder)
    return folder


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.jsonl"
    rows = torch.randint(0, 48, (4, 16), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


def refuse(path: Path, error: type[MoegeoError], config: Path | None = None) -> str:
    """The error of opening a checkpoint, which `inspect` gives as well."""
    with pytest.raises(error) as caught:
        open_run(path, config)
    with pytest.raises(error):
        inspect_checkpoint(path, config=config)
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    state = load_file(folder / "model.safetensors")
    save_file(change(state) or state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_alone_with_a_config_from_elsewhere(
    kind: str, base: Path, probe: Path, tmp_path: Path
) -> None:
    """As accelerate's save_state leaves them: no config.json, no generation_config.json."""
    alone = tmp_path / "alone"
    alone.mkdir()
    if kind == "safetensors":
        shutil.copy(base / "model.safetensors", alone)
    else:
        torch.save(load_file(base / "model.safetensors"), alone / "pytorch_model.bin")
    options: dict[str, Any] = {"probe": probe, "baseline": "none", "cache": False}
    found = analyze(alone, config=base, **options).checkpoints[0]
    assert found.loss == analyze(base, **options).checkpoints[0].loss


def test_experts_that_are_not_alike_are_named(base: Path, probe: Path) -> None:
    options: dict[str, Any] = {"probe": probe, "baseline": "none", "cache": False}

    def narrow(state: dict[str, torch.Tensor]) -> None:
        state[EXPERT] = state[EXPERT][:, :-1].contiguous()

    whole = load_file(base / "model.safetensors")
    rewrite(base, narrow)
    for stream in (False, True):
        with pytest.raises(ShapeError, match=EXPERT.replace(".", r"\.")):
            analyze(base, **options, stream=stream)
    whole.pop(EXPERT)
    save_file(whole, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompleteCheckpointError, match=EXPERT.replace(".", r"\.")) as caught:
        analyze(base, **options)
    assert "above report" not in str(caught.value)


@pytest.mark.parametrize("script", ["above", "beside", None])
def test_deepspeeds_command_stands_where_its_script_lies(
    script: str | None, tmp_path: Path
) -> None:
    step = tmp_path / "ds" / "global_step100"
    step.mkdir(parents=True)
    (step / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"")
    if script is not None:
        ((step.parent if script == "above" else step) / "zero_to_fp32.py").write_text("")
    said = refuse(step, UnsupportedLayoutError)
    assert "DeepSpeed ZeRO" in said
    assert {
        "above": f"cd {step.parent} && python zero_to_fp32.py . OUT --tag global_step100",
        "beside": f"cd {step} && python zero_to_fp32.py . OUT --safe",
        None: f"cd {step.parent} && python -m deepspeed.utils.zero_to_fp32 . OUT --tag global_",
    }[script] in said


def test_the_hubs_cache_names_its_snapshots(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "hub" / "models--org--name"
    for revision in ("aaa", "fff"):
        shutil.copytree(base, model / "snapshots" / revision)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("aaa")
    said = f"give {model / 'snapshots' / 'aaa'}"
    assert said in refuse(model, NoCheckpointError)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert said in refuse(Path("org/name"), PathError)
    assert "hf download org/other" in refuse(Path("org/other"), PathError)
    assert "hf download" not in refuse(Path("a/b/c"), PathError)
    assert open_run(model / "snapshots" / "aaa").is_single


def test_olmo_core_is_named_beside_its_own_config(base: Path, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    step = tmp_path / "step100"
    state = load_file(base / "model.safetensors")
    dcp.save({"model": state}, checkpoint_id=str(step / "model_and_optim"))
    (step / "config.json").write_text(json.dumps({"model": {"d_model": 24}, "dataset": {}}))
    assert "OLMo-core" in refuse(step, UnsupportedLayoutError)
    with pytest.raises(UnsupportedArchitectureError, match="no model_type") as caught:
        analyze(step / "model_and_optim")
    assert "OLMo-core" in str(caught.value)
    assert inspect_checkpoint(step / "model_and_optim", config=base).problem is None


@pytest.mark.parametrize("place", ["epoch=1-step=10.ckpt", "version_0/checkpoints/last.ckpt"])
def test_lightning_is_named(place: str, tmp_path: Path) -> None:
    file = tmp_path / "run" / place
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.5"}, file)
    assert "Lightning" in refuse(tmp_path / "run", UnsupportedLayoutError)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "pytorch_model.bin", "config.json", "model.safetensors.index.json"],
)
def test_a_pointer_of_git_lfs_is_named(name: str, base: Path) -> None:
    if name != "config.json":
        (base / "model.safetensors").unlink()
    (base / name).write_text(POINTER)
    said = refuse(base, IncompleteCheckpointError)
    assert f"{name} is a Git LFS pointer" in said
    assert f"cd {base} && git lfs pull" in said


@pytest.mark.parametrize("part", ["", "experts"])
def test_tensors_that_zero3_did_not_gather_are_named(part: str, base: Path, probe: Path) -> None:
    def empty(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {n: torch.empty(0) if part in n else t for n, t in state.items()}

    rewrite(base, empty)
    with pytest.raises(IncompleteCheckpointError, match="ZeRO-3"):
        analyze(base, probe=probe, cache=False)
    assert "ZeRO-3" in inspect_checkpoint(base).problem


def test_a_run_that_can_keep_nothing_says_so(base: Path, probe: Path) -> None:
    """A file in the place of the folder stands for a read-only one, which root could write."""
    (base / ".moegeo").write_text("")
    run = analyze(base, probe=probe, baseline="none")
    assert any("not kept" in note for note in run.run["notes"])
