"""What `benchmarks.fuzz` and `benchmarks.kills` do at length, once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from benchmarks.kills import SAMPLE, command, half_written
from moegeo_cli.cli import app
from moegeo_cli.errors import OutputError
from moegeo_cli.store import files
from moegeo_cli.store.cache import Store
from tests.store.test_store import ARRAYS, RECORD


def test_damaged_files_are_read_or_refused() -> None:
    counts, wrong, slowest = fuzz(4000, seed=7, keep=None)
    assert wrong == []
    assert sum(counts.values()) == 4000
    assert slowest < 5.0  # a reader that hangs, not a slow machine


def test_a_killed_analysis_leaves_nothing_broken(tmp_path: Path) -> None:
    """Killed while it measures: what stands before and after is analyzed in this process."""
    run, output = tmp_path / "run", tmp_path / "report.json"
    shutil.copytree(SAMPLE / "checkpoint-0", run / "checkpoint-0")
    words = command(run, output)

    def whole() -> bytes:
        assert app.run(words[3:]) == 0
        return output.read_bytes()

    expected = whole()
    shutil.rmtree(run / ".moegeo")
    output.unlink()
    started = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert started.stderr is not None
    assert any("[1/1] checkpoint-0" in line for line in started.stderr)
    started.kill()
    assert started.wait() == -signal.SIGKILL
    started.stderr.close()
    assert half_written(run) == []
    assert not output.exists()
    assert whole() == expected


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
