"""`watch` of the Python API: follows a run while it trains."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.analyze.api import analyze
from moegeo_cli.commands.watch.completion import CompletionTracker
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    PathError,
)
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Model, Watch
from moegeo_cli.records import CheckpointRecord, RunRecord, Verdict

NOT_YET = (PathError, NoCheckpointError, IncompleteCheckpointError)
TRIES = 3  # a checkpoint that fails this many times is left out


@dataclass(frozen=True, slots=True)
class Sighting:
    """A new checkpoint of a watched run.

    Attributes:
        run: the judged run up to now.
        checkpoint: the new checkpoint.
        verdict: the verdict on the run up to this checkpoint.
        before: status of the verdict at the previous checkpoint; None at the first one.
    """

    run: RunRecord
    checkpoint: CheckpointRecord
    verdict: Verdict
    before: str | None

    @property
    def changed(self) -> bool:
        """Whether the verdict differs from that of the previous checkpoint."""
        return self.before is not None and self.before != self.verdict.status


@takes(Watch)
def watch(
    path: Path | str, *, progress: Listener | None = None, **options: Unpack[Watch]
) -> Iterator[Sighting]:
    """Follow a run while it trains: judge each checkpoint once it is completely written.

    It starts with the checkpoints that exist, and waits if there are none. After the first
    checkpoint was measured, one that cannot be measured is tried three times, then noted to
    `progress` and left out.

    Args:
        path: the run: a folder of checkpoints.
        progress: receives an event for each checkpoint and batch, and a note on what is awaited;
            None for none.
        options: see below.

    Returns:
        An iterator over the checkpoints, oldest first. It waits for the next one and does not end.

    Raises:
        MoegeoError: the first analysis fails; see `analyze`.
    """
    given: dict[str, Any] = dict(options)
    interval = given.pop("interval")
    return _follow(path, progress, interval, given)


def _follow(
    path: Path | str, progress: Listener | None, interval: float, options: dict[str, Any]
) -> Iterator[Sighting]:
    models = choose_models(captures=None, **select_options(Model, options))
    tracker, seen, failed = CompletionTracker(), set[str](), Counter[str]()
    before: str | None = None
    noted = ""
    while True:
        new: list[Checkpoint] = []
        try:
            whole = [c for c in tracker.look(models.open(path)) if failed[c.relative] < TRIES]
            new = [c for c in whole if c.relative not in seen]
            found = _analyze_complete(path, whole, progress, options) if new else ()
        except MoegeoError as error:
            if not seen and not isinstance(error, NOT_YET):
                raise
            failed.update(c.relative for c in new)
            found = ()
            text = f"{error.message} ({error.found})" if error.found else error.message
            if progress is not None and text != noted:
                progress.note(f"waiting: {text}")
            noted = text
        for run, checkpoint, verdict in found:
            if checkpoint.path not in seen:
                seen.add(checkpoint.path)
                yield Sighting(run, checkpoint, verdict, before)
                before = verdict.status
        time.sleep(interval)


def _analyze_complete(
    path: Path | str, whole: list[Checkpoint], progress: Listener | None, options: dict[str, Any]
) -> list[tuple[RunRecord, CheckpointRecord, Verdict]]:
    """Analyze the complete checkpoints; return run, checkpoint and verdict of each."""
    steps = [c.step for c in whole if c.step is not None]
    chosen = steps if len(steps) == len(whole) else None  # a single model may have none
    run = analyze(path, progress=progress, steps=chosen, **options)
    return [(run, c, c.verdict) for c in run.checkpoints if c.verdict is not None]
