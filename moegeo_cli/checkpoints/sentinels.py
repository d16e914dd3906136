"""Tell whether a checkpoint is still being written, by the files that trainers write last.

For example, the Trainer writes `trainer_state.json` last. If the newest checkpoint of a run lacks
it and the others have it, the newest is still being written. Part of discovery.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.step_names import parse_step

# Files that a trainer writes last into a checkpoint's folder: the Trainer, prime-rl, orbax.
LAST_FILES = ("trainer_state.json", "STABLE", "commit_success.txt")
# Files in a run's folder that hold the step of the last complete checkpoint: verl, nanotron.
LATEST_STEP_FILES = ("latest_checkpointed_iteration.txt", "latest.txt")


def why_unfinished(folder: Path, step: int | None, siblings: Iterable[Path]) -> str | None:
    """The sign that a checkpoint is still being written, in words; None where there is no sign.

    The signs: an `.unfinished` marker; the newest checkpoint lacks a last file that others have;
    the run's file of the latest step names an older step. An older checkpoint that lacks a last
    file counts as complete: it was saved by other means (an initial model, for instance).

    Args:
        folder: the checkpoint's folder in its run.
        step: the checkpoint's step; None where it is not known.
        siblings: the checkpoints of the run; `folder` itself is ignored.
    """
    marks = (folder / ".unfinished", folder.with_name(f"{folder.name}-unfinished"))
    mark = next((m for m in marks if is_there(m)), None)
    if mark is not None:
        return f"still being written: {mark.name} is there"
    if step is None:
        return None
    others = [s for s in siblings if s.name != folder.name]
    for file in LAST_FILES:
        if is_there(folder / file):
            continue
        complete = [parse_step(s.name) or 0 for s in others if is_there(s / file)]
        if complete and step > max(complete):
            return f"still being written: no {file}, which the others have"
    for file in LATEST_STEP_FILES:
        last = _read_step(folder.parent / file)
        if last is not None and step > last:
            return f"still being written: {file} names step {last}"
    return None


def has_last_file(folder: Path) -> bool:
    """Whether a checkpoint's folder holds a file that its trainer writes last."""
    return any(is_there(folder / file) for file in LAST_FILES)


def _read_step(path: Path) -> int | None:
    """The step in a file of the latest step; None where it is absent or holds none."""
    try:
        text = path.read_text("ascii")[:32].strip() if is_there(path) else ""
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else parse_step(text)
