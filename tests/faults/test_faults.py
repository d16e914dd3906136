"""A short run of what `benchmarks.fuzz` and `benchmarks.kills` do at length."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.kills import kills
from moegeo_cli.errors import OutputError
from moegeo_cli.store import files
from moegeo_cli.store.cache import Store
from tests.store.test_store import ARRAYS, RECORD


def test_damaged_files_are_read_or_refused() -> None:
    counts, wrong, slowest = fuzz(4000, seed=7, keep=None)
    assert wrong == []
    assert sum(counts.values()) == 4000
    assert slowest < 5.0  # a reader that hangs, not a slow machine


def test_a_killed_analysis_leaves_nothing_broken() -> None:
    found = kills(times=1, checkpoints=1, seed=3)
    assert found["killed"] == 1
    assert found["half-written"] == found["other bytes"] == 0


def test_a_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_atomic(tmp_path / "report.json", "data")
    assert list(tmp_path.iterdir()) == []
    store = Store(tmp_path / "store")
    assert store.save("k", RECORD, ARRAYS).measurements
    assert "No space left" in (store.problem or "")
    assert store.load("k") is None
