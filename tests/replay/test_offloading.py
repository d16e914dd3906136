"""A model in parts gives the numbers of the whole one."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moegeo_cli import analyze
from moegeo_cli.reports import render
from tests.command import call
from tests.end_to_end.conftest import random_ids, write_probe
from tests.replay.documents import assert_equal
from tests.sharding import save_state
from tests.tiny_models import build_tiny

# What is not the same: the setting, the plan of memory, and what is not looked at where weights
# are not in memory.
BUT = (
    r"device_map|replay\.memory|experts_(zero|nonfinite|identical)|checks\[\d+\]\.(outcome|reason)"
)
MAP = {
    "model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu",
    "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk",
}  # fmt: skip


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    return write_probe(tmp_path / "p.jsonl", random_ids([5 + (7 * i) % 29 for i in range(17)]))


def document(path: Path, **keywords: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(render(analyze(path, **keywords), "json"))
    return found


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "model_type",
    ["mixtral", "deepseek_v3", *(pytest.param(t, marks=SLOW) for t in ("qwen3_moe", "gpt_oss"))],
)
@pytest.mark.parametrize("device_map", ["cpu", "disk", json.dumps(MAP)], ids=["cpu", "disk", "map"])
def test_parts_give_the_numbers_of_the_whole(
    model_type: str, device_map: str, probe: Path, tiny: Callable[..., Path]
) -> None:
    whole = document(tiny(model_type), probe=probe, cache=False)
    parts = document(tiny(model_type), probe=probe, cache=False, device_map=device_map)
    assert_equal(whole, parts, BUT)
    for layer in parts["checkpoints"][0]["layers"]:
        in_memory = device_map == "cpu" or (device_map != "disk" and layer["layer"] == 0)
        assert (layer["experts_zero"] is not None) is in_memory


def test_each_checkpoint_of_a_run_is_placed_anew(
    tmp_path: Path, probe: Path, tiny: Callable[..., Path]
) -> None:
    for step in (0, 10):
        shutil.copytree(tiny("mixtral", step), tmp_path / "run" / f"checkpoint-{step}")
    whole = document(tmp_path / "run", probe=probe, cache=False)
    parts = document(tmp_path / "run", probe=probe, cache=False, device_map="disk")
    assert parts["checkpoints"][1]["metrics"]["fhs"]["value"] is not None
    assert_equal(whole, parts, BUT)


def test_a_torch_distributed_checkpoint_in_parts(tmp_path: Path, probe: Path) -> None:
    model = build_tiny("mixtral")
    save_state(model.state_dict(), tmp_path / "run")
    model.config.save_pretrained(tmp_path / "run")
    whole = document(tmp_path / "run", probe=probe, cache=False)
    parts = document(tmp_path / "run", probe=probe, cache=False, device_map="disk")
    assert_equal(whole, parts, BUT)


def test_a_map_may_lie_in_a_file(
    tmp_path: Path, probe: Path, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "map.json").write_text(json.dumps(MAP))
    outcome = call(capsys, "analyze", tiny("mixtral"), "--probe", probe, "--no-cache",
                   "--device-map", tmp_path / "map.json", "--format", "json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.document["settings"]["device_map"]) == MAP
    assert "offloaded" not in outcome.err  # accelerate's own words


def test_a_missing_accelerate_is_named_with_its_command(
    probe: Path, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "accelerate" else find(name)
    )
    outcome = call(capsys, "analyze", tiny("mixtral"), "--probe", probe, "--device-map", "disk",
                   "--no-cache")  # fmt: skip
    assert outcome.code == 2
    assert "pip install 'moegeo[offload]'" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device-map", "auto", "--device", "cpu"], "leave one of the two out"),
        (["--device-map", "disk", "--baseline", "init"], "leave one of the two out"),
        (["--device-map", "disk", "--stream"], "leave one of the two out"),
        (["--device-map", "disk", "--model", "json:loads"], "leave one of the two out"),
        (["--device-map", "tp"], "cannot use tensor parallelism"),
        (["--device-map", "nowhere.json"], "neither a known word, nor JSON"),
        (["--device-map", "{"], "neither a known word, nor JSON"),
        (["--device-map", '{"lm_head": []}'], "not an object from module to device"),
        (["--device-map", '{"": "no such device"}'], "check --device-map"),
    ],
)
def test_maps_that_cannot_be_meant(
    arguments: list[str], words: str, probe: Path, tiny: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    outcome = call(capsys, "analyze", tiny("mixtral"), "--probe", probe, "--no-cache", *arguments)
    assert outcome.code == 2
    assert words in outcome.err
