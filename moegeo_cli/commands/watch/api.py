"""`watch` of the Python API: follow a run that grows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.analyze.api import analyze
from moegeo_cli.commands.watch.settling import Settling
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    NoCheckpointError,
    PathError,
)
from moegeo_cli.keywords import part, takes
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Model, Watch
from moegeo_cli.records import CheckpointRecord, RunRecord, Verdict

NOT_YET = (PathError, NoCheckpointError, IncompleteCheckpointError)
TRIES = 3  # looks at which a checkpoint may fail before it is left out


@dataclass(frozen=True, slots=True)
class Sighting:
    """A checkpoint that a watched run has gained.

    Attributes:
        run: the run as far as it has come, judged.
        checkpoint: the new checkpoint.
        verdict: of the run up to this checkpoint.
        before: the verdict's status at the checkpoint before; None at the first one.
    """

    run: RunRecord
    checkpoint: CheckpointRecord
    verdict: Verdict
    before: str | None

    @property
    def changed(self) -> bool:
        """Whether the verdict is another one than at the checkpoint before."""
        return self.before is not None and self.before != self.verdict.status


@takes(Watch)
def watch(
    path: Path | str, *, progress: Listener | None = None, **options: Unpack[Watch]
) -> Iterator[Sighting]:
    """Follow a run that grows: each checkpoint, once it is whole, judged with those before it.

    It begins with the checkpoints that are there, and goes on until it is no longer asked. A run
    that has no checkpoint yet is waited for. Once one is measured, a checkpoint that cannot be
    measured is tried at three looks, said to `progress` and left out.

    Args:
        path: the run: a folder of checkpoints.
        progress: is called as checkpoints are measured, and hears what is waited for.
        options: see below.

    Returns:
        An iterator over the checkpoints, oldest first. It waits for the next one.

    Raises:
        MoegeoError: the first analysis fails; as `analyze` raises it.
    """
    given: dict[str, Any] = dict(options)
    interval = given.pop("interval")
    return _follow(path, progress, interval, given)


def _follow(
    path: Path | str, progress: Listener | None, interval: float, options: dict[str, Any]
) -> Iterator[Sighting]:
    models = choose_models(captures=None, **part(Model, options))
    settling, seen, failed = Settling(), set[str](), Counter[str]()
    before: str | None = None
    said = ""
    while True:
        new: list[Checkpoint] = []
        try:
            whole = [c for c in settling.look(models.open(path)) if failed[c.relative] < TRIES]
            new = [c for c in whole if c.relative not in seen]
            found = _judged(path, whole, progress, options) if new else ()
        except MoegeoError as error:
            if not seen and not isinstance(error, NOT_YET):
                raise
            failed.update(c.relative for c in new)
            found = ()
            text = f"{error.message} ({error.found})" if error.found else error.message
            if progress is not None and text != said:
                progress.note(f"waiting: {text}")
            said = text
        for run, checkpoint, verdict in found:
            if checkpoint.path not in seen:
                seen.add(checkpoint.path)
                yield Sighting(run, checkpoint, verdict, before)
                before = verdict.status
        time.sleep(interval)


def _judged(
    path: Path | str, whole: list[Checkpoint], progress: Listener | None, options: dict[str, Any]
) -> list[tuple[RunRecord, CheckpointRecord, Verdict]]:
    """The whole checkpoints of the run, each with its verdict."""
    steps = [c.step for c in whole if c.step is not None]
    chosen = steps if len(steps) == len(whole) else None  # a single model may have none
    run = analyze(path, progress=progress, steps=chosen, **options)
    return [(run, c, c.verdict) for c in run.checkpoints if c.verdict is not None]
