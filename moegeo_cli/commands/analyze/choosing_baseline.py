"""Chooses the baseline of a run."""

from __future__ import annotations

import re
from pathlib import Path

from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.errors import BaselineError
from moegeo_cli.measuring.run import Measured
from moegeo_cli.models.given import Models


def choose_baseline(
    folder: RunFolder, baseline: str | None, models: Models
) -> tuple[Checkpoint | None, str | None]:
    """Choose the checkpoint that FHS compares with.

    Args:
        folder: the run.
        baseline: a step, a path, "init" or "none"; None for the default.
        models: opens a baseline that lies outside the run.

    Returns:
        The checkpoint and None; or None and the reason why there is none. For "init" both are
        None.

    Raises:
        BaselineError: the run has no checkpoint of that step.
        MoegeoError: the path cannot be opened.
    """
    if baseline in ("none", "init"):
        return None, "no baseline was asked for" if baseline == "none" else None
    if baseline is None or re.fullmatch(r"\d{1,15}", baseline):
        step = int(baseline or 0)
        found = [c for c in folder.checkpoints if c.step == step]
        if found:
            return found[0], None
        base_model = _base_model(folder) if baseline is None else None
        if base_model is not None:
            return base_model, None
        if baseline is None:
            return None, "the run has no step-0 checkpoint; use --baseline init, STEP or PATH"
        have = ", ".join(str(c.step) for c in folder.checkpoints)
        raise BaselineError(f"the run has no checkpoint of step {step}", found=f"steps {have}")
    other = models.open(Path(baseline))
    start = other.checkpoints[0]
    name = start.path.name if other.is_single else f"{other.name}/{start.relative}"
    return start.renamed(f"baseline:{name}"), None


def _base_model(folder: RunFolder) -> Checkpoint | None:
    """The base model of a run of adapters, taken as its step 0; None for any other run."""
    bases = {c.config_folder for c in folder.checkpoints if c.layout == ADAPTER}
    if folder.is_single or len(bases) != 1 or any(c.layout != ADAPTER for c in folder.checkpoints):
        return None
    [path] = bases
    base = Checkpoint(path, f"baseline:{path.resolve().name}", step=0)
    base.require_whole()
    return base


def refuse_other_routers(newest: Measured, base: Measured) -> None:
    """Refuse a baseline whose routers differ from the run's routers.

    Raises:
        BaselineError: the routers' names or shapes differ.
    """
    ours = [(r.path, r.weight_ED.shape) for r in newest.arrays.routers]
    theirs = [(r.path, r.weight_ED.shape) for r in base.arrays.routers]
    if ours != theirs:
        found = f"{len(theirs)} routers against {len(ours)}"
        if len(theirs) == len(ours):
            base_is, run_is = next(
                pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]
            )
            found = f"{_describe(*base_is)} against {_describe(*run_is)}"
        raise BaselineError(
            "the baseline has other routers than the run",
            found=found,
            hint="choose a baseline of the same architecture, or --baseline init",
        )


def _describe(path: str, shape: tuple[int, ...]) -> str:
    return f"{path} of {' x '.join(map(str, shape))}"
