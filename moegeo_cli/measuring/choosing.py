"""Which checkpoints and layers of a run were asked for."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.errors import UsageError
from moegeo_cli.settings import parse_ranges


def choose_checkpoints(
    folder: RunFolder, steps: str | Sequence[int] | None, latest: bool
) -> list[Checkpoint]:
    """The checkpoints that were asked for, oldest first."""
    wanted = parse_ranges(steps, "--steps")
    chosen = [c for c in folder.checkpoints if wanted is None or c.step in wanted]
    if not chosen:
        have = ", ".join(str(c.step) for c in folder.checkpoints)
        raise UsageError("no checkpoint has one of these steps", found=f"steps {have}")
    return chosen[-1:] if latest else chosen
