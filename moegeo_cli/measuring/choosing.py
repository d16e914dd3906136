"""Choose the checkpoints of a run by --steps and --latest."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.errors import UsageError
from moegeo_cli.settings import parse_ranges


def choose_checkpoints(
    folder: RunFolder, steps: str | Sequence[int] | None, latest: bool
) -> list[Checkpoint]:
    """The chosen checkpoints, oldest first.

    Args:
        folder: the run.
        steps: steps or ranges of steps; None for all.
        latest: whether to keep only the newest of them.

    Raises:
        UsageError: no checkpoint has one of the steps.
    """
    wanted = parse_ranges(steps, "--steps")
    chosen = [c for c in folder.checkpoints if wanted is None or c.step in wanted]
    if not chosen:
        have = ", ".join(str(c.step) for c in folder.checkpoints)
        raise UsageError("no checkpoint has one of these steps", found=f"steps {have}")
    return chosen[-1:] if latest else chosen
