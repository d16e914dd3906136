"""Which checkpoints of a growing run are whole."""

from __future__ import annotations

import os
from pathlib import Path

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.sentinels import has_last_file

State = frozenset[tuple[str, int, int]]  # (path, size, time of change) of a checkpoint's files


class Settling:
    """One look after the other at a run.

    Checkpoints that are marked as unfinished are skipped as a run is opened. Of the others only the
    newest can still be written: it counts with the file that its trainer writes last, or when
    nothing of it has changed since the look before.
    """

    def __init__(self) -> None:
        self.before: State = frozenset()

    def look(self, run: RunFolder) -> tuple[Checkpoint, ...]:
        """The whole checkpoints, oldest first."""
        newest = run.newest
        now = _state(newest.path)
        settled = has_last_file(newest.path) or (bool(now) and now == self.before)
        self.before = now
        return run.checkpoints if settled else run.checkpoints[:-1]


def _state(folder: Path) -> State:
    """Of the files of a folder and of the folders in it; hidden ones are none of a checkpoint."""
    found = set()
    for root, folders, files in os.walk(folder):
        if Path(root) != folder:
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(root) / name
            try:
                stat = path.stat()
            except OSError:  # moved away meanwhile
                continue
            found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
