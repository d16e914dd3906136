"""Which checkpoints of a run count as written, look by look."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moegeo_cli.checkpoints.sentinels import LAST_FILES
from moegeo_cli.commands.watch.completion import CompletionTracker


class Run:
    """A run whose checkpoints are folders with any files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.tracker = CompletionTracker()

    def write(self, step: int, name: str = "model.safetensors", content: bytes = b"a") -> Path:
        file = self.root / f"checkpoint-{step}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def look(self) -> list[int]:
        """The steps that count as complete."""
        folders = sorted(self.root.iterdir(), key=lambda f: int(f.name.split("-")[1]))
        found = tuple(SimpleNamespace(path=f, step=int(f.name.split("-")[1])) for f in folders)
        run: Any = SimpleNamespace(checkpoints=found, newest=found[-1])
        complete: Any = self.tracker.look(run)
        return [checkpoint.step for checkpoint in complete]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_older_checkpoints_count_at_once_and_the_newest_once_it_stands_still(run: Run) -> None:
    run.write(100)
    run.write(200)
    assert run.look() == [100]
    assert run.look() == [100, 200]
    run.write(300)
    assert run.look() == [100, 200]
    assert run.look() == [100, 200, 300]


@pytest.mark.parametrize("name", LAST_FILES)
def test_a_file_that_is_written_last_ends_the_wait(run: Run, name: str) -> None:
    run.write(100)
    run.write(100, name)
    assert run.look() == [100]


def test_every_change_of_a_file_starts_the_wait_again(run: Run) -> None:
    file = run.write(100)
    os.utime(file, ns=(0, 10**9))
    assert run.look() == []
    changes = [
        lambda: file.write_bytes(b"ab"),  # longer
        lambda: os.utime(file, ns=(0, 3 * 10**9)),  # later
        lambda: run.write(100, "optimizer.pt"),  # one more
        lambda: run.write(100, "part/shard.bin"),  # in a subfolder
        lambda: file.unlink(),  # one less
    ]
    for number, change in enumerate(changes):
        change()
        assert run.look() == [], number
        assert run.look() == [100], number


def test_hidden_folders_and_deep_ones_do_not_matter(run: Run) -> None:
    run.write(100)
    assert run.look() == []
    run.write(100, ".moegeo/kept.json")
    run.write(100, "part/deeper/log.txt")
    assert run.look() == [100]


def test_an_empty_folder_never_counts(run: Run) -> None:
    (run.root / "checkpoint-100").mkdir()
    assert [run.look(), run.look(), run.look()] == [[], [], []]
