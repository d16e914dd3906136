"""Decides which checkpoints of a run in training are completely written."""

from __future__ import annotations

import os
from pathlib import Path

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.sentinels import has_last_file

State = frozenset[tuple[str, int, int]]  # (path, size, time of change) of a checkpoint's files


class CompletionTracker:
    """Finds the complete checkpoints of a run, look by look.

    Opening a run already skips checkpoints that are marked as unfinished. Of the others, only the
    newest may still be being written. It counts as complete if it has the file that its trainer
    writes last, or if none of its files changed since the previous look.
    """

    def __init__(self) -> None:
        self.before: State = frozenset()

    def look(self, run: RunFolder) -> tuple[Checkpoint, ...]:
        """The complete checkpoints, oldest first."""
        newest = run.newest
        now = _state(newest.path)
        complete = has_last_file(newest.path) or (bool(now) and now == self.before)
        self.before = now
        return run.checkpoints if complete else run.checkpoints[:-1]


def _state(folder: Path) -> State:
    """State of all files in a folder and in its direct subfolders, without hidden folders."""
    found = set()
    for root, folders, files in os.walk(folder):
        if Path(root) != folder:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            try:
                stat = path.stat()
            except OSError:  # moved or deleted meanwhile
                continue
            found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
