"""Weights & Biases, offline: the user uploads the written runs with `wandb sync`.

An offline run cannot be read or continued, so a small JSON file beside it lists the steps in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.scalars import PREFIX, Point
from moegeo_cli.store.files import check_writable, write_atomic

DEFAULT_PLACE = "moegeo"
EXTRA = "wandb"
ALL_CHECKPOINTS = True
SYNTAX = "wandb[:PROJECT]"
FOLDER = Path("wandb")  # W&B's own folder name, in the current folder


def prepare(where: str) -> None:
    """Check that the library is installed and the folder can be written."""
    import wandb  # noqa: F401

    check_writable(_ledger(where, ""))


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Log one row per point into a new offline run; all offline runs of a run have the same id."""
    ledger = _ledger(where, run)
    there = _steps(ledger)
    new = [p for p in points if p.step not in there]
    if new:
        _log(where, run, new)
        write_atomic(ledger, json.dumps(sorted(there | {p.step for p in new})))
    return len(new)


def _log(project: str, run: str, points: Sequence[Point]) -> None:
    import wandb

    # create_new: a W&B run of the training in this process stays open. The path is absolute,
    # because another process with its own current folder writes the file.
    own: Any = wandb.init(
        project=project, name=run, id=_identity(project, run), mode="offline",
        dir=str(FOLDER.parent.resolve()), reinit="create_new",
        settings=wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True,
            x_disable_stats=True, x_disable_meta=True,
        ),
    )  # fmt: skip
    try:
        own.define_metric(f"{PREFIX}step", hidden=True)
        own.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")
        for point in points:
            own.log({f"{PREFIX}step": point.step, **point.values}, step=point.step)
    finally:
        own.finish()


def _identity(project: str, run: str) -> str:
    return hashlib.sha256(f"{project}/{run}".encode()).hexdigest()[:12]


def _ledger(project: str, run: str) -> Path:
    return FOLDER / f"moegeo-{_identity(project, run)}.json"


def _steps(ledger: Path) -> set[int]:
    return set(json.loads(ledger.read_text(encoding="utf-8"))) if ledger.is_file() else set()
