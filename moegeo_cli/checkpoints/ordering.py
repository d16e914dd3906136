"""Sort the checkpoints of a run by training step, and skip duplicates. Part of discovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.nesting import several_models_error, several_stages_error
from moegeo_cli.checkpoints.step_names import parse_step, read_name


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a run that looks like a checkpoint and was skipped.

    Attributes:
        path: relative to the run.
        reason: why it was skipped, in words.
        redundant: the run loses no step by it: it is a copy of another checkpoint, the run's
            final model, or has no step.
    """

    path: str
    reason: str
    redundant: bool = False


def sort_by_step(
    run: Path, checkpoints: Sequence[Checkpoint]
) -> tuple[list[Checkpoint], list[Skipped]]:
    """Sort checkpoints by step.

    Where no checkpoint has a step, the epochs in their names take the place of steps. A single
    checkpoint with neither is kept.

    Args:
        run: the run's folder, for errors.
        checkpoints: complete ones. `relative` begins with the name that holds the step.

    Returns:
        The sorted checkpoints, and the skipped ones: those without a step, and copies.

    Raises:
        NoCheckpointError: several checkpoints and none has a step, or several training stages.
    """
    if all(checkpoint.step is None for checkpoint in checkpoints):
        for checkpoint in checkpoints:
            checkpoint.step = read_name(_own_name(checkpoint)).epoch
    numbered = [checkpoint for checkpoint in checkpoints if checkpoint.step is not None]
    unordered = [checkpoint for checkpoint in checkpoints if checkpoint.step is None]
    if not numbered and len(unordered) > 1:
        raise several_models_error(run, [checkpoint.relative for checkpoint in unordered])
    if not numbered:
        return unordered, []
    _refuse_stages(run, numbered)
    skipped = [
        Skipped(c.relative, "no step in its name or state", redundant=True) for c in unordered
    ]
    kept: list[Checkpoint] = []
    # Names with a step win over links and copies such as `latest` and `best`.
    for checkpoint in sorted(
        numbered,
        key=lambda c: (c.step, parse_step(c.relative) is None, c.path.is_symlink(), c.relative),
    ):
        if kept and kept[-1].step == checkpoint.step:
            reason = f"the same step as {kept[-1].relative}"
            skipped.append(Skipped(checkpoint.relative, reason, redundant=True))
        else:
            kept.append(checkpoint)
    return kept, skipped


def _own_name(checkpoint: Checkpoint) -> str:
    return checkpoint.relative.partition("/")[0]


def _refuse_stages(run: Path, numbered: Sequence[Checkpoint]) -> None:
    """Raise where checkpoints are of several training stages, each of which counts from 0."""
    stages: dict[str, list[Checkpoint]] = {}
    for checkpoint in sorted(numbered, key=lambda c: (c.step or 0, c.relative)):
        stage = read_name(_own_name(checkpoint)).stage or "no stage"
        stages.setdefault(stage, []).append(checkpoint)
    if len(stages) > 1:
        raise several_stages_error(
            run, [(stage, [c.relative for c in held]) for stage, held in sorted(stages.items())]
        )
