"""What trainers write last, by which a checkpoint that is still being written is known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from moegeo_cli.checkpoints.headers import is_there
from moegeo_cli.checkpoints.step_names import parse_step

# Files in a checkpoint's folder that its trainer writes last: the Trainer, prime-rl, orbax.
SEALS = ("trainer_state.json", "STABLE", "commit_success.txt")
# Files in a run's folder that name the step of the last checkpoint that is whole: verl, nanotron.
COUNTERS = ("latest_checkpointed_iteration.txt", "latest.txt")


def why_unfinished(folder: Path, step: int | None, siblings: Iterable[Path]) -> str | None:
    """Why a checkpoint is still being written; None where nothing says so.

    A seal that others have and the newest lacks says so. An older one without it was saved by
    other means, an initial model for instance.

    Args:
        folder: the checkpoint, as it lies in its run.
        step: of the checkpoint.
        siblings: the other checkpoints of the run.
    """
    marks = (folder / ".unfinished", folder.with_name(f"{folder.name}-unfinished"))
    mark = next((m for m in marks if is_there(m)), None)
    if mark is not None:
        return f"still being written: {mark.name} is there"
    if step is None:
        return None
    others = [s for s in siblings if s.name != folder.name]
    for seal in SEALS:
        if is_there(folder / seal):
            continue
        sealed = [parse_step(s.name) or 0 for s in others if is_there(s / seal)]
        if sealed and step > max(sealed):
            return f"still being written: no {seal}, which the others have"
    for counter in COUNTERS:
        last = _count(folder.parent / counter)
        if last is not None and step > last:
            return f"still being written: {counter} names step {last}"
    return None


def is_sealed(folder: Path) -> bool:
    """Whether a checkpoint has what its trainer writes last."""
    return any(is_there(folder / seal) for seal in SEALS)


def _count(path: Path) -> int | None:
    try:
        text = path.read_text("ascii")[:32].strip() if is_there(path) else ""
    except (OSError, ValueError):
        return None
    return int(text) if text.isdecimal() else parse_step(text)
