"""Which checkpoints and layers of a run were asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moegeo_cli.checkpoints.discover import CheckpointFolder, RunFolder
from moegeo_cli.errors import UsageError


def choose_checkpoints(
    folder: RunFolder, steps: str | Sequence[int] | None, latest: bool
) -> list[CheckpointFolder]:
    """The checkpoints that were asked for, oldest first."""
    wanted = parse_ranges(steps, "--steps")
    chosen = [c for c in folder.checkpoints if wanted is None or c.step in wanted]
    if not chosen:
        have = ", ".join(str(c.step) for c in folder.checkpoints)
        raise UsageError("no checkpoint has one of these steps", found=f"steps {have}")
    return chosen[-1:] if latest else chosen


def parse_ranges(text: str | Sequence[int] | None, option: str) -> tuple[int, ...] | None:
    """Numbers out of "0,4-7", or given as such; None for all.

    Raises:
        UsageError: not of that form.
    """
    if text is None:
        return None
    if not isinstance(text, str):
        given = [n for n in text if type(n) is int and n >= 0] if isinstance(text, Sequence) else []
        if not given or len(given) < len(text):
            raise UsageError(f"{option} is not a list of numbers", found=repr(text)[:80])
        return tuple(sorted(set(given)))
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None or int(match[2] or match[1]) - int(match[1]) > 10**6:
            raise UsageError(f"{option} is not a list of numbers", found=text, hint="like 0,4-7")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(sorted(numbers))
