"""Revisions of the Hub, measured one after the other while each one's weights are here.

What is kept of a revision's measurement stands for it afterwards. So a run of many revisions needs
the disk of one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.hub import fetch
from moegeo_cli.checkpoints.hub_notes import note_of
from moegeo_cli.errors import UsageError
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.store.cache import FOLDER


def on_hub(run: RunFolder) -> bool:
    """Whether a run is of the Hub."""
    return note_of(run.newest.path) is not None


@contextmanager
def kept_for(
    runs: Sequence[RunFolder | None], storage: Mapping[str, Any], ranks: object = None
) -> Iterator[dict[str, Any]]:
    """The options of a store that outlasts each revision's weights; as given for other runs.

    Args:
        runs: of a command.
        storage: the options as given.
        ranks: who shares the probe.

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
    """Bring each chosen revision of a run of the Hub and do something with it alone.

    Args:
        run: any run; one that is not of the Hub is left alone.
        do: is called with a run of one revision while its weights are here.
        is_kept: whether the store holds all of that already; then no weights are brought.
        steps: which of the run.
        latest: likewise.
        also: a further step, where the run has it: of the baseline.
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
    """A run of one of its checkpoints, opened anew: its weights may have come."""
    fresh = Checkpoint(
        checkpoint.path,
        checkpoint.relative,
        step=checkpoint.step,
        given_config=checkpoint.given_config,
    )
    return RunFolder(run.name, checkpoint.path, True, (fresh,), (), run.config)


def bring(*runs: RunFolder) -> None:
    """Bring the weights that a lens reads: of one revision of each run.

    Raises:
        UsageError: a run of several revisions.
    """
    for run in runs:
        if not run.is_single and on_hub(run):
            raise UsageError(
                "this command reads one revision of the Hub", found=run.name,
                hint=f"name it: {run.newest.relative}, for instance",
            )  # fmt: skip
    fetch([run.newest.path for run in runs])
