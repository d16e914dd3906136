"""What `--memory` promises: the peak of a process of its own, or a refusal before it loads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import random_ids, write_probe
from tests.tiny_models import build_tiny

GIB, MIB = 2**30, 2**20
# The command line in a process of its own, which says at its end what it held at most.
RUN = """
import atexit, runpy, sys
def tell():
    with open("/proc/self/status") as file:
        print(*(line for line in file if line.startswith("VmHWM")), file=sys.stderr)
atexit.register(tell)
sys.argv[0] = "moegeo"
runpy.run_module("moegeo_cli", run_name="__main__")
"""
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, its peak in bytes, what it said, its JSON."""

    code: int
    peak: int
    said: str
    document: dict[str, Any]

    @property
    def replay(self) -> dict[str, Any]:
        """Of its only checkpoint."""
        found: dict[str, Any] = self.document["checkpoints"][0]["replay"]
        return found

    @property
    def planned(self) -> float:
        """Bytes that the line on stderr promised."""
        match = re.search(r"memory: at most ([\d.,]+) (MiB|GiB)", self.said)
        assert match is not None, self.said
        return float(match[1].replace(",", "")) * (GIB if match[2] == "GiB" else MIB)


def analyze(path: Path, probe: Path, *options: str) -> Ended:
    return run_command("analyze", path, probe, "--no-cache", "--baseline", "none", *options)


def run_command(command: str, path: Path, probe: Path, *options: str) -> Ended:
    out = path / "out.json"
    done = subprocess.run(
        [sys.executable, "-c", RUN, command, str(path), "--probe", str(probe),
         "--format", "json", "--output", str(out), *options],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    match = re.search(r"VmHWM:\s+(\d+) kB", done.stderr)
    assert match is not None, done.stderr
    document = json.loads(out.read_text()) if done.returncode == 0 else {}
    return Ended(done.returncode, 1024 * int(match[1]), done.stderr, document)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of 15 MB whose logits for 1,024 positions take 400 MB, and its probe."""
    folder = tmp_path_factory.mktemp("wide")
    build_tiny("qwen3_moe", vocab_size=100_000, max_position_embeddings=512).save_pretrained(folder)
    return folder, write_probe(folder / "probe.jsonl", random_ids([128] * 8))


@pytest.fixture(scope="module")
def bounded(wide: tuple[Path, Path]) -> Ended:
    """The model within 1 GiB."""
    return analyze(*wide, "--memory", "1GB")


def test_the_bound_holds_where_logits_are_what_is_large(bounded: Ended) -> None:
    assert bounded.code == 0, bounded.said
    assert bounded.peak <= min(GIB, bounded.planned)
    memory = bounded.replay["memory"]
    assert memory["form"] == "whole"
    assert max(memory["terms"], key=memory["terms"].get) == "logits"
    assert bounded.replay["batch_tokens"] < 1024, "smaller batches made it fit"
    assert any("positions" in note for note in bounded.replay["notes"])


def test_a_bound_that_cannot_hold_is_refused_before_loading(
    bounded: Ended, wide: tuple[Path, Path]
) -> None:
    process = re.search(r"process (\d+) MiB", bounded.said)
    assert process is not None
    ended = analyze(*wide, "--memory", f"{int(process[1]) + 20}MB")
    assert ended.code == 2
    assert "MG-E050" in ended.said
    assert "logits" in ended.said, "the largest terms are named"
    assert re.search(r"it needs [\d,]+ MiB", ended.said), "and what would be enough"
    assert ended.peak < (int(process[1]) + 20) * MIB, "nothing was loaded"


LONG = {"max_position_embeddings": 4096}
GRID: list[tuple[str, dict[str, Any], list[int], str]] = [
    ("mixtral", {"vocab_size": 100_000}, [256] * 8, "float32"),
    ("deepseek_v3", {"vocab_size": 100_000}, [256] * 8, "bfloat16"),
    ("qwen3_moe", {"num_experts": 128, "num_hidden_layers": 8, "hidden_size": 256,
                   "moe_intermediate_size": 256, "num_attention_heads": 8, "head_dim": 32},
     [256] * 16, "float32"),
    ("gpt_oss", {**LONG, "num_attention_heads": 8}, [1024] * 4, "float32"),
    ("gpt_oss", {**LONG, "num_attention_heads": 8}, [1024] * 4, "bfloat16"),
    ("mixtral", LONG, [2048, 1500, 2048, 700], "float32"),
    ("deepseek_v3", {**LONG, "n_routed_experts": 64, "hidden_size": 256}, [1024] * 4, "bfloat16"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "changes", "lengths", "dtype"), GRID)
def test_the_plan_is_met_and_not_far_above(
    model_type: str, changes: dict[str, Any], lengths: list[int], dtype: str, tmp_path: Path
) -> None:
    build_tiny(model_type, **changes).save_pretrained(tmp_path)
    probe = write_probe(tmp_path / "probe.jsonl", random_ids(lengths))
    for memory in ("64GB", "900MB"):
        ended = analyze(tmp_path, probe, "--memory", memory, "--dtype", dtype)
        if ended.code == 2:
            assert "MG-E050" in ended.said
            continue
        assert ended.code == 0, ended.said
        assert ended.peak <= 1.02 * ended.planned, ended.said
        assert ended.planned <= 2 * ended.peak, ended.said


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "changes", "lengths", "dtype"), GRID[3:])
def test_a_streamed_plan_is_met_where_attention_forms_every_pair(
    model_type: str, changes: dict[str, Any], lengths: list[int], dtype: str, tmp_path: Path
) -> None:
    build_tiny(model_type, **changes).save_pretrained(tmp_path)
    probe = write_probe(tmp_path / "probe.jsonl", random_ids(lengths))
    ended = analyze(tmp_path, probe, "--stream", "--dtype", dtype)
    assert ended.code == 0, ended.said
    assert ended.peak <= 1.02 * ended.planned, ended.said
    assert ended.planned <= 2 * ended.peak, ended.said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "model_type", "changes", "lengths", "dtype"),
    [(command, *case) for command in ("experts", "routing") for case in GRID[:4]]
    + [("invariance", *case) for case in (*GRID[:2], *GRID[3:4])],
)  # fmt: skip
def test_lenses_stay_within_the_bound_too(
    command: str, model_type: str, changes: dict[str, Any], lengths: list[int], dtype: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The replay is planned; what a lens keeps and computes afterwards fits in what it frees."""
    build_tiny(model_type, **changes).save_pretrained(tmp_path)
    probe = write_probe(tmp_path / "probe.jsonl", random_ids(lengths))
    options = ["--memory", "900MB"]
    if command != "invariance":  # it keeps nothing, and computes in float32
        options += ["--no-cache", "--dtype", dtype]
    ended = run_command(command, tmp_path, probe, *options)
    if ended.code == 2:
        assert "MG-E050" in ended.said, ended.said
        return
    assert ended.code == 0, ended.said
    assert ended.peak <= 900 * MIB, ended.said
