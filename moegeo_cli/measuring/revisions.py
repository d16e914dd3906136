"""Runs on the Hub: download and measure one revision after another.

Only the measurement of a revision is kept, so a run of many revisions needs the disk space of one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.hub import fetch
from moegeo_cli.checkpoints.hub_notes import read_note
from moegeo_cli.errors import UsageError
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.store.cache import FOLDER


def on_hub(run: RunFolder) -> bool:
    """Whether a run is on the Hub."""
    return read_note(run.newest.path) is not None


@contextmanager
def store_options_for(
    runs: Sequence[RunFolder | None], storage: Mapping[str, Any], ranks: object = None
) -> Iterator[dict[str, Any]]:
    """Context manager: the store options for the runs of a command.

    Runs on the Hub get a store that outlasts the weights of each revision; for other runs the
    options are unchanged.

    Args:
        runs: the runs of the command.
        storage: the user's options `cache` and `cache_dir`.
        ranks: the processes that share the probe; None for a single process.

    Raises:
        UsageError: revisions of the Hub under torchrun.
    """
    found = [run for run in runs if run is not None and on_hub(run)]
    if not found:
        yield dict(storage)
        return
    if ranks is not None:
        raise UsageError(
            "revisions of the Hub cannot be measured under torchrun: one process measures them",
            found=f"{found[0].name} under torchrun",
            hint="hf download ORG/NAME --revision REVISION --local-dir FOLDER, and give FOLDER",
        )
    if not storage["cache"]:
        with tempfile.TemporaryDirectory() as folder:
            yield {**storage, "cache": True, "cache_dir": folder}
        return
    own = found[0].newest.path.parent / FOLDER
    yield {**storage, "cache_dir": storage["cache_dir"] or own}


def each_revision(
    run: RunFolder,
    do: Callable[[RunFolder], object],
    is_kept: Callable[[RunFolder], bool],
    *,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
    also: int | None = None,
) -> None:
    """Download each chosen revision of a run on the Hub in turn, and call a function with it.

    Args:
        run: the run; nothing is done for a run that is not on the Hub.
        do: called with a run of one revision while its weights are on disk.
        is_kept: whether the store has everything of a revision; then it is not downloaded.
        steps: steps or ranges of steps; None for all.
        latest: whether to use only the newest of them.
        also: a further step, that of the baseline, if the run has it.
    """
    if not on_hub(run):
        return
    chosen = choose_checkpoints(run, steps, latest)
    chosen = [*chosen, *(c for c in run.checkpoints if c.step == also and c not in chosen)]
    for checkpoint in chosen:
        if not is_kept(_alone(run, checkpoint)):
            fetch([checkpoint.path])
            do(_alone(run, checkpoint))


def _alone(run: RunFolder, checkpoint: Checkpoint) -> RunFolder:
    """A run with one checkpoint only, opened again because its weights may now be on disk."""
    fresh = Checkpoint(
        checkpoint.path,
        checkpoint.relative,
        step=checkpoint.step,
        given_config=checkpoint.given_config,
    )
    return RunFolder(run.name, checkpoint.path, True, (fresh,), (), run.config)


def fetch_weights(*runs: RunFolder) -> None:
    """Download the weights that a lens reads: one revision of each run.

    Raises:
        UsageError: a run has several revisions.
    """
    for run in runs:
        if not run.is_single and on_hub(run):
            raise UsageError(
                "this command reads one revision of the Hub", found=run.name,
                hint=f"name it: {run.newest.relative}, for instance",
            )  # fmt: skip
    fetch([run.newest.path for run in runs])
