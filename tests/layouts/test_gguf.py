"""GGUF files against the values that the package gguf says are in them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from moegeo_cli import analyze, inspect
from moegeo_cli.checkpoints.discover import open_run
from moegeo_cli.checkpoints.opening import open_weights
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    UnsupportedLayoutError,
)
from moegeo_cli.models.loading import load_model
from moegeo_cli.records import RunRecord
from tests.layouts.gguf_writer import KINDS, MODELS, build, write
from tests.layouts.test_megatron import numbers

CASES = [(t, Kind.Q8_0) for t in MODELS] + [("qwen3_moe", k) for k in KINDS if k != Kind.Q8_0]


@pytest.mark.parametrize(("model_type", "kind"), CASES)
def test_values_are_those_of_the_package(model_type: str, kind: Kind, tmp_path: Path) -> None:
    meant = write(build(model_type), tmp_path / "model", kind)
    checkpoint = open_run(tmp_path / "model").newest
    loaded = load_model(checkpoint, torch.device("cpu"), torch.float32).state_dict()
    assert loaded.keys() == meant.keys()
    for name, expected in meant.items():
        assert torch.equal(loaded[name], expected), name
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert torch.equal(checkpoint.weights.tensor(name, (1, 3)).float(), meant[name][1:3])
    plain = kind in (Kind.F32, Kind.F16, Kind.BF16)
    assert checkpoint.weights.record.scheme == (() if plain else (f"GGUF {kind.name}",))


def test_its_numbers_are_those_of_the_dequantised_model(tmp_path: Path) -> None:
    model = build("qwen3_moe")
    model.load_state_dict(write(model, tmp_path / "run" / "step-10", Kind.Q8_0))
    model.save_pretrained(tmp_path / "plain" / "step-10")
    probe = tmp_path / "probe.jsonl"
    rows = [{"input_ids": [(3 * n + k) % 64 for n in range(20)]} for k in range(6)]
    probe.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"probe": probe, "baseline": "none", "cache": False}
    known = analyze(tmp_path / "plain", **options)
    for stream in (False, True):
        found = analyze(tmp_path / "run", stream=stream, **options)
        assert isinstance(found, RunRecord)
        assert isinstance(known, RunRecord)
        ours, theirs = numbers(found), numbers(known)
        assert len(ours) > 20
        assert all(math.isclose(ours[n], theirs[n], rel_tol=1e-6, abs_tol=1e-7) for n in theirs)
    described = inspect(tmp_path / "run")
    assert described.weights["scheme"] == ["GGUF Q8_0"]
    assert (described.layout, described.problem) == ("gguf", None)


def change(folder: Path, **facts: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **facts}))


def test_what_is_not_its_model_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(build("mixtral"), folder, Kind.F16)
    change(folder, num_attention_heads=3)
    with pytest.raises(IncompleteCheckpointError, match="do not fit each other"):
        open_run(folder)
    change(folder, num_attention_heads=4, model_type="qwen3_moe", num_experts=4)
    with pytest.raises(UnsupportedLayoutError, match="is for model type qwen3_moe"):
        load_model(open_run(folder).newest, torch.device("cpu"), torch.float32)


def test_other_architectures_are_refused_with_the_way_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(build("olmoe"), folder, Kind.F16)
    data = (folder / "model.gguf").read_bytes()
    (folder / "model.gguf").write_bytes(data.replace(b"olmoe", b"dbrxx", 1))
    index = open_weights(folder)
    assert index.obstacle is not None
    assert "the architecture dbrxx; key maps exist for mixtral, olmoe" in str(index.obstacle.found)
    assert "gguf_file" in str(index.obstacle.hint)


@pytest.mark.parametrize("end", [2, 40, 700, -100])
def test_a_file_that_is_cut_is_incomplete(end: int, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    write(build("olmoe"), folder, Kind.Q8_0)
    data = (folder / "model.gguf").read_bytes()
    (folder / "model.gguf").write_bytes(data[:end])
    with pytest.raises(IncompleteCheckpointError, match=r"truncated or damaged"):
        open_run(folder)


def test_what_to_give_instead_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    write(build("olmoe"), folder, Kind.F16)
    with pytest.raises(MoegeoError, match="takes folders") as caught:
        open_run(folder / "model.gguf")
    assert "--config" in str(caught.value.hint)
    (folder / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(IncompleteCheckpointError, match=r"config\.json") as caught:
        open_run(folder)
    assert "the GGUF was made from" in str(caught.value.hint)
    assert open_run(folder, tmp_path).newest.layout == "gguf"
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedLayoutError, match="not installed") as caught:
        open_run(folder, tmp_path)
    assert "moegeo[gguf]" in str(caught.value.hint)
    (folder / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedLayoutError, match="several GGUF files"):
        open_run(folder, tmp_path)
