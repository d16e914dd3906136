"""TensorBoard: event files in DIR/RUN, written with the package `tensorboard`, without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from moegeo_cli.scalars import LAST, Point
from moegeo_cli.store.files import check_writable

DEFAULT_PLACE = None
EXTRA = "tensorboard"
ALL_CHECKPOINTS = True
SYNTAX = "tensorboard:DIR"


def prepare(where: str) -> None:
    """Check that the library is installed and the folder can be written."""
    import tensorboard.summary  # noqa: F401

    check_writable(Path(where) / "events")


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Write each scalar as an event into the run's own folder."""
    from tensorboard.summary import Writer

    folder = Path(where) / (re.sub(r"[^\w.=+-]+", "_", run) or "run")
    there = _steps(folder)
    new = [p for p in points if p.step not in there]
    if new:
        writer = Writer(str(folder))
        for point in new:
            for name, value in point.values.items():
                writer.add_scalar(name, value, point.step)
        writer.close()
    return len(new)


def _steps(folder: Path) -> set[int]:
    """Steps that the run's event files already have."""
    from tensorboard.backend.event_processing.event_accumulator import (
        TENSORS,
        EventAccumulator,
    )

    if not folder.is_dir():
        return set()
    events = EventAccumulator(str(folder), size_guidance={TENSORS: 0})
    events.Reload()
    if LAST not in events.Tags()["tensors"]:
        return set()
    return {event.step for event in events.Tensors(LAST)}
