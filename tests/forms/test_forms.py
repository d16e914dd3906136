"""Quantised forms, on files that each form's own writer made (`write.py`)."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moegeo_cli import analyze, experts, routing
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import MoegeoError, UnsupportedLayoutError

FILES = Path(__file__).parent / "files"
ALL = sorted(p.name.removesuffix(".reference.safetensors") for p in FILES.glob("*.reference.*"))
REFUSED = {"quanto-int4": "quanto weights of 2 or 4 bits"}
READ = [name for name in ALL if name not in REFUSED]
# One a formula: all ways in with each.
CHOSEN = ("bitsandbytes-nf4", "compressed-fp8-block", "compressed-w4a16-asymmetric")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "probe.jsonl"
    rows = torch.randint(0, 48, (6, 24), generator=torch.Generator().manual_seed(1))
    path.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows.tolist()))
    return path


def twin(name: str, folder: Path) -> Path:
    """The checkpoint with every tensor as the value it stands for, and no word of quantisation."""
    index = Checkpoint(FILES / name).weights
    folder.mkdir(parents=True)
    save_file({n: index.tensor(n).contiguous() for n in index.names() if "_scale" not in n},
              folder / "model.safetensors")  # fmt: skip
    config = json.loads((FILES / name / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run_of(name: str, folder: Path) -> Path:
    for step in (100, 200):
        shutil.copytree(FILES / name, folder / f"checkpoint-{step}")
    return folder


def losses(path: Path, probe: Path, **options: Any) -> list[float]:
    run = analyze(path, probe=probe, baseline="none", cache=False, dtype="float32", **options)
    return [checkpoint.loss.value or 0.0 for checkpoint in run.checkpoints]


@pytest.fixture(scope="module")
def loss_of(probe: Path) -> Callable[[str], float]:
    """The loss of a file as its writer made it, each measured once."""
    return functools.cache(lambda name: losses(FILES / name, probe)[0])


@pytest.mark.parametrize("name", READ)
def test_values_are_those_that_the_writer_gives(name: str) -> None:
    index = Checkpoint(FILES / name).weights
    assert index.obstacle is None
    assert index.record.scheme
    reference = load_file(FILES / f"{name}.reference.safetensors")
    assert index.record.dequantised > len(reference)  # which is of one layer
    for tensor, values in reference.items():
        found = index.tensor(tensor)
        # some libraries round what they give to bfloat16
        torch.testing.assert_close(found, values, rtol=2**-8, atol=0)
        part = index.tensor(tensor, (1, 3))
        torch.testing.assert_close(part, found[1:3], rtol=0, atol=0)


@pytest.mark.parametrize("name", READ)
def test_equal_bytes_give_equal_numbers_on_every_way_in(
    name: str, tmp_path: Path, probe: Path, loss_of: Callable[[str], float]
) -> None:
    plain = losses(twin(name, tmp_path / "twin"), probe)[0]
    run = run_of(name, tmp_path / "run")
    first, second = losses(run, probe)
    assert first == second == pytest.approx(plain, rel=1e-5)
    assert losses(run, probe, stream=True) == [pytest.approx(plain, rel=1e-5)] * 2
    assert (
        abs(loss_of("plain") / plain - 1) > 1e-6
    )  # the plain model's loss is another: it was quantised


@pytest.mark.parametrize("name", READ)
def test_the_form_is_told_by_the_files_alone(
    name: str, tmp_path: Path, probe: Path, loss_of: Callable[[str], float]
) -> None:
    folder = tmp_path / "bare"
    shutil.copytree(FILES / name, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    (folder / "config.json").write_text(json.dumps(config))
    if name == "compressed-fp8-block":  # blocks of 16 with a cut last one: the size is open
        with pytest.raises(UnsupportedLayoutError, match="no block size"):
            losses(folder, probe)
        return
    assert losses(folder, probe) == [loss_of(name)]


@pytest.mark.parametrize("name", CHOSEN)
def test_the_lenses_and_the_record_see_the_same_weights(
    name: str, tmp_path: Path, probe: Path
) -> None:
    plain = twin(name, tmp_path / "twin")
    options: dict[str, Any] = {"probe": probe, "cache": False, "dtype": "float32"}
    found = [
        experts(path, **options, stream=stream)
        for path, stream in ((plain, False), (FILES / name, False), (FILES / name, True))
    ]
    for layers in zip(*(record.layers for record in found), strict=True):
        values = [{n: m.value for n, m in layer.metrics.items()} for layer in layers]
        for other in values[1:]:
            assert other == pytest.approx(values[0], rel=1e-4, abs=1e-6, nan_ok=True)
    pair = routing(FILES / name, plain, **options)
    assert pair is not None
    run = analyze(FILES / name, probe=probe, baseline="none", cache=False)
    weights = run.checkpoints[0].replay["weights"]
    assert weights["dequantised"] > 0
    assert weights["scheme"]
    assert any("dequantised" in note for note in run.checkpoints[0].replay["notes"])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_read_is_refused_by_name(name: str, tmp_path: Path, probe: Path) -> None:
    run = run_of(name, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-100")
    shutil.copytree(FILES / "plain", run / "checkpoint-100")
    for options in ({}, {"stream": True}):
        for path in (FILES / name, run):
            with pytest.raises(MoegeoError, match=REFUSED[name]) as caught:
                losses(path, probe, **options)
            assert "inspect" in str(caught.value)
