"""The store: what is damaged is no entry, and a kill leaves nothing half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from moegeo_cli.errors import OutputError
from moegeo_cli.records import CheckpointRecord, Coverage, Metric
from moegeo_cli.store.cache import Store, entry_key
from moegeo_cli.store.files import write_atomic

RECORD = CheckpointRecord(
    step=3,
    path="checkpoint-3",
    fingerprint="f",
    coverage=Coverage(2, 2),
    loss=Metric(1.5, unit="nats"),
    metrics={"fsi": Metric(0.25)},
    layers=(),
)
ARRAYS = {"a": np.arange(12.0).reshape(3, 4), "b": np.array([1, 2], dtype=np.int64)}


def test_an_entry_comes_back_as_it_was(tmp_path: Path) -> None:
    store = Store(tmp_path)
    saved = store.save("k", RECORD, ARRAYS)
    found = store.load("k")
    assert found is not None
    record, arrays = found
    assert record == saved
    assert all((arrays[n] == ARRAYS[n]).all() for n in ARRAYS)
    assert store.record("k") is not None


@pytest.mark.parametrize("name", ["record.json", "measurements.safetensors"])
@pytest.mark.parametrize("damage", ["deleted", "truncated", "changed", "empty"])
def test_a_damaged_entry_is_no_entry(tmp_path: Path, name: str, damage: str) -> None:
    store = Store(tmp_path)
    store.save("k", RECORD, ARRAYS)
    path = tmp_path / "k" / name
    data = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif name == "record.json":
        path.write_bytes(data.replace(b'"loss"', b'"lost"'))
    else:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert store.load("k") is None
    assert store.record("k") is None


def test_what_was_changed_by_hand_is_not_believed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("k", RECORD, ARRAYS)
    path = tmp_path / "k" / "record.json"
    document = json.loads(path.read_text())
    document["content"]["path"] = "another"
    path.write_text(json.dumps(document))
    assert store.record("k") is None
    store.save_json("run-k", {"a": 1})
    assert store.load_json("run-k") == {"a": 1}
    derived = tmp_path / "run-k.json"
    derived.write_text(derived.read_text().replace('"a": 1', '"a": 2'))
    assert store.load_json("run-k") is None


def test_a_store_that_cannot_be_written_loses_no_measurement(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = Store(tmp_path / "file" / "store")
    record = store.save("k", RECORD, ARRAYS)
    assert record.measurements
    assert store.problem
    assert store.load("k") is None


def test_keys_tell_apart_what_differs() -> None:
    assert entry_key({"a": 1}) == entry_key({"a": 1})
    assert entry_key({"a": 1}) != entry_key({"a": 2})


def test_an_output_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "out.json", "data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


WRITER = """
import sys
from pathlib import Path
from moegeo_cli.store.files import write_atomic
path = Path(sys.argv[1])
for n in range(10**9):
    write_atomic(path, str(n % 10) * 300_000)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    for attempt in range(5):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            time.sleep(0.01)
        time.sleep(0.03 + 0.01 * attempt)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) == 300_000
        assert len(set(text)) == 1


@pytest.mark.parametrize(("mask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_are_written_as_the_umask_allows(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "new", "a")
        assert (tmp_path / "new").stat().st_mode & 0o777 == mode
        (tmp_path / "new").chmod(0o640)
        write_atomic(tmp_path / "new", "b")
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
