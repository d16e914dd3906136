"""Checkpoints that choose other numbers of experts: said before any number, stored or not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from moegeo_cli import analyze, compare
from moegeo_cli.errors import BaselineError
from tests.tiny_models import save_tiny


def with_top_k(path: Path, top_k: int) -> None:
    config = json.loads((path / "config.json").read_text())
    config["num_experts_per_tok"] = top_k
    (path / "config.json").write_text(json.dumps(config))


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(f'{{"input_ids": {[(7 * i + j) % 60 for j in range(20)]}}}\n'
                            for i in range(16)))  # fmt: skip
    return path


def test_compare_says_another_k_first(tmp_path: Path, probe: Path) -> None:
    save_tiny("qwen3_moe", tmp_path / "a" / "checkpoint-100")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with_top_k(tmp_path / "a" / "checkpoint-100", 2)
    with_top_k(tmp_path / "b" / "checkpoint-100", 3)
    found = compare(tmp_path / "a", tmp_path / "b", probe=probe, cache=False)
    assert found.notes[0] == "chosen experts per token (K): 2 against 3"


def test_a_run_whose_k_changes_is_refused_with_a_warm_store_too(
    tmp_path: Path, probe: Path
) -> None:
    for step in (0, 100):
        save_tiny("qwen3_moe", tmp_path / "run" / f"checkpoint-{step}", step)
    with_top_k(tmp_path / "run" / "checkpoint-0", 2)
    with_top_k(tmp_path / "run" / "checkpoint-100", 3)
    for step in ("0", "100"):
        analyze(tmp_path / "run" / f"checkpoint-{step}", probe=probe, baseline="none",
                cache_dir=tmp_path / "kept")  # fmt: skip
    for _ in range(2):
        with pytest.raises(BaselineError, match=r"\(K\): 2 against 3"):
            analyze(tmp_path / "run", probe=probe, cache_dir=tmp_path / "kept")
