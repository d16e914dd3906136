"""Checkpoints of a run in the order of training, by what their names and states tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.nesting import several_models, several_stages
from moegeo_cli.checkpoints.step_names import parse_step, read_name


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in a run that looked like a checkpoint and was left out.

    A spare one is no further point of the run's course: a copy of a checkpoint, or the final model.
    """

    path: str
    reason: str
    spare: bool = False


def in_order(
    run: Path, checkpoints: Sequence[Checkpoint]
) -> tuple[list[Checkpoint], list[Skipped]]:
    """Checkpoints by step, and those that are left out: without a step, or a copy.

    Where no checkpoint has a step, the epochs of their names order them. One without either stays
    as it is.

    Args:
        run: where they are, for errors.
        checkpoints: whole ones. `relative` begins with the name that tells a step.

    Raises:
        NoCheckpointError: several without a step, or of several stages.
    """
    if all(checkpoint.step is None for checkpoint in checkpoints):
        for checkpoint in checkpoints:
            checkpoint.step = read_name(_own_name(checkpoint)).epoch
    numbered = [checkpoint for checkpoint in checkpoints if checkpoint.step is not None]
    unordered = [checkpoint for checkpoint in checkpoints if checkpoint.step is None]
    if not numbered and len(unordered) > 1:
        raise several_models(run, [checkpoint.relative for checkpoint in unordered])
    if not numbered:
        return unordered, []
    _refuse_stages(run, numbered)
    skipped = [Skipped(c.relative, "no step in its name or state", spare=True) for c in unordered]
    kept: list[Checkpoint] = []
    # Names that tell a step win over links and copies such as `latest` and `best`.
    for checkpoint in sorted(
        numbered,
        key=lambda c: (c.step, parse_step(c.relative) is None, c.path.is_symlink(), c.relative),
    ):
        if kept and kept[-1].step == checkpoint.step:
            reason = f"the same step as {kept[-1].relative}"
            skipped.append(Skipped(checkpoint.relative, reason, spare=True))
        else:
            kept.append(checkpoint)
    return kept, skipped


def _own_name(checkpoint: Checkpoint) -> str:
    return checkpoint.relative.partition("/")[0]


def _refuse_stages(run: Path, numbered: Sequence[Checkpoint]) -> None:
    """Stages of a training count their steps anew: together they are no run."""
    stages: dict[str, list[Checkpoint]] = {}
    for checkpoint in sorted(numbered, key=lambda c: (c.step or 0, c.relative)):
        stage = read_name(_own_name(checkpoint)).stage or "no stage"
        stages.setdefault(stage, []).append(checkpoint)
    if len(stages) > 1:
        raise several_stages(
            run, [(stage, [c.relative for c in held]) for stage, held in sorted(stages.items())]
        )
