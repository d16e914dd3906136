"""Quantised weights on further ways in: a baseline, fused experts in slices, packages away."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze, check
from tests.forms.test_forms import FILES, READ, losses, run_of, twin

PACKAGES = (
    "accelerate", "auto_round", "bitsandbytes", "compressed_tensors", "gguf", "kernels", "modelopt",
    "optimum", "peft", "torchao",
)  # fmt: skip
FEW = ("bitsandbytes-int8", "bitsandbytes-nf4", "compressed-fp8-block", "torchao-int8")
HIDDEN = """
import importlib.abc, json, sys
names, paths, probe = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(names))  # which import and find_spec take for not installed
from moegeo_cli import analyze
runs = [analyze(p, probe=probe, baseline="none", cache=False, dtype="float32") for p in paths]
print(json.dumps([[c.loss.value for c in run.checkpoints] for run in runs]))
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    rows = torch.randint(0, 48, (6, 24), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


@pytest.mark.parametrize("name", FEW[::2])
def test_a_quantised_baseline_is_that_of_its_values(name: str, tmp_path: Path, probe: Path) -> None:
    options: dict[str, Any] = {"probe": probe, "cache": False, "dtype": "float32"}
    plain = twin(name, tmp_path / "twin")
    for run in (FILES / "plain", FILES / name):
        one, other = (
            analyze(run, baseline=str(baseline), **options).checkpoints[0].layers
            for baseline in (plain, FILES / name)
        )
        for a, b in zip(one, other, strict=True):
            assert a.metrics["fhs"].value is not None
            assert a.metrics["fhs"].value == pytest.approx(b.metrics["fhs"].value, rel=1e-5)


@pytest.mark.parametrize("scales", ["tensor", "expert", "row", "block"])
def test_fused_experts_of_eight_bits(scales: str, tmp_path: Path, probe: Path) -> None:
    """Experts in one tensor, (E, R, C), with scales of each kind; values by plain arithmetic."""
    state, fused, values = load_file(FILES / "plain/model.safetensors"), {}, {}
    for layer in range(2):
        at = f"model.layers.{layer}.mlp.experts"
        own = {
            kind: torch.stack([state.pop(f"{at}.{e}.{kind}_proj.weight") for e in range(3)])
            for kind in ("gate", "up", "down")
        }
        for target, weight in (
            ("gate_up_proj", torch.cat((own["gate"], own["up"]), 1)),
            ("down_proj", own["down"]),
        ):
            count, rows, columns = weight.shape
            shape = {
                "tensor": (1,),
                "expert": (count, 1, 1),
                "row": (count, rows, 1),
                "block": (count, rows // 8, columns // 8),
            }[scales]
            scale = torch.rand(shape, generator=torch.Generator().manual_seed(layer)) / 50 + 0.01
            spread = scale.reshape(-1, 1, 1) if scales == "tensor" else scale
            for axis, size in enumerate(weight.shape):
                spread = spread.repeat_interleave(size // spread.shape[axis], axis)
            stored = (weight.float() / spread).to(torch.float8_e4m3fn)
            fused |= {f"{at}.{target}": stored, f"{at}.{target}_scale_inv": scale}
            values[f"{at}.{target}"] = stored.float() * spread
    folders = []
    for name, tensors in (("fused", fused), ("twin", values)):
        shutil.copytree(FILES / "plain", tmp_path / name)
        save_file({**state, **tensors}, tmp_path / name / "model.safetensors")
        folders.append(tmp_path / name)
    quantised, plain = folders
    expected = losses(plain, probe)
    assert losses(quantised, probe) == pytest.approx(expected, rel=1e-6)
    assert losses(quantised, probe, stream=True) == pytest.approx(expected, rel=1e-6)
    run = tmp_path / "run"
    for step, folder in ((100, plain), (200, quantised)):
        shutil.copytree(folder, run / f"checkpoint-{step}")
    assert losses(run, probe) == pytest.approx(expected * 2, rel=1e-6)


@pytest.mark.parametrize("name", ["compressed-fp8-tensor", "compressed-w4a16"])
def test_a_scale_of_zero_is_damage(name: str, tmp_path: Path, probe: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(FILES / name, folder)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.experts.1.up_proj.weight_scale"].zero_()
    save_file(state, folder / "model.safetensors")
    for stream in (False, True):
        run = analyze(folder, probe=probe, baseline="none", cache=False, stream=stream)
        [found] = [f for f in run.verdict.findings if f.name == "experts-damaged"]
        assert (found.layers, found.severity) == ((1,), "watch")
        assert "expert 1 in layer 1" in found.message
    names = {f.name for f in check(folder, cache=False).verdict.findings}
    assert "experts-damaged" in names


@pytest.mark.parametrize(
    "names", [FEW, pytest.param(tuple(READ), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_numbers_are_the_same_without_any_optional_package(
    names: tuple[str, ...], tmp_path: Path, probe: Path
) -> None:
    """In a process that can import none of the packages that quantise, merge or place models."""
    runs = [run_of(name, tmp_path / name) for name in names]
    given = json.dumps([PACKAGES, [str(run) for run in runs], str(probe)])
    done = subprocess.run(
        [sys.executable, "-c", HIDDEN, given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [losses(run, probe) for run in runs]
