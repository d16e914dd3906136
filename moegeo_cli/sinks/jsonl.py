"""JSON Lines: one line per checkpoint, with the run's name, the step and the scalars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from moegeo_cli.errors import OutputError
from moegeo_cli.scalars import Point
from moegeo_cli.store.files import check_writable

DEFAULT_PLACE = None
EXTRA = None
ALL_CHECKPOINTS = True
SYNTAX = "jsonl:FILE"


def prepare(where: str) -> None:
    """Check that the file has the expected form (if it exists) and can be written.

    Raises:
        OutputError: it does not, or cannot.
    """
    _steps(Path(where), "")
    check_writable(Path(where))


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Append one line per point; the file may hold other runs."""
    path = Path(where)
    there = _steps(path, run)
    new = [p for p in points if p.step not in there]
    lines = [json.dumps({"run": run, "step": p.step, **p.values}) + "\n" for p in new]
    if lines:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    return len(new)


def _steps(path: Path, run: str) -> set[int]:
    """Steps of a run that the file already has.

    Raises:
        OutputError: the file was not written by this sink.
    """
    if not path.is_file():  # a pipe or a device is only written to
        return set()
    try:
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            raise ValueError("its last line is cut short")
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        return {int(row["step"]) for row in rows if row["run"] == run}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{path} is not a file of JSON lines that --log wrote", found=str(error)[:200],
            hint="choose another file",
        ) from error  # fmt: skip
