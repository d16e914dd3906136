"""Measures a run and checks its files. Revisions of the Hub are handled one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.hub import parse_hub
from moegeo_cli.commands.analyze.analysis import Analysis
from moegeo_cli.commands.analyze.opening import is_measured, measure_folder
from moegeo_cli.commands.check.api import are_checked, check_files
from moegeo_cli.commands.check.run import FilesChecked
from moegeo_cli.measuring.revisions import each_revision
from moegeo_cli.verdict.files import FileOutcomes
from moegeo_cli.verdict.thresholds import Thresholds


def measure_and_check(
    run: RunFolder,
    limits: Thresholds | None,
    baseline: str | None,
    shared: Mapping[str, Any],
    storage: Mapping[str, Any],
    *,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
) -> tuple[Analysis, Mapping[str, FileOutcomes]]:
    """A run as measured, and what its files tell of each checkpoint.

    Args:
        run: the run.
        limits: of what the files tell; None where nothing is asked of them.
        baseline: as `measure_run` takes it, as are `steps` and `latest`.
        shared: `models`, `settings`, `probe`, `max_tokens`, `progress` and `ranks`, likewise.
        storage: the store's options.
        steps: likewise.
        latest: likewise.
    """
    bring_revisions(run, limits, baseline, shared, storage, steps=steps, latest=latest)
    told: list[FilesChecked] = []
    which: dict[str, Any] = {"steps": steps, "latest": latest}

    def before() -> None:
        if limits is not None:
            hears = {"progress": shared["progress"], **storage}
            told.append(check_files(run, shared["models"], limits, **which, **hears))

    measured = measure_folder(run, baseline=baseline, before=before, **which, **shared, **storage)
    return measured, told[0].outcomes if told else {}


def bring_revisions(
    run: RunFolder,
    limits: Thresholds | None,
    baseline: str | None,
    shared: Mapping[str, Any],
    storage: Mapping[str, Any],
    *,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
) -> None:
    """Measure and check each revision of the Hub by itself, while its weights are here.

    The store holds all of it afterwards. For any other run nothing is done.

    Args: as `measure_and_check` takes them.
    """
    models = shared["models"]

    def one(revision: RunFolder) -> None:
        if limits is not None:
            check_files(revision, models, limits, progress=shared["progress"], **storage)
        own = "init" if baseline == "init" else "none"
        measure_folder(revision, baseline=own, **shared, **storage)

    def is_kept(revision: RunFolder) -> bool:
        if baseline == "init":
            return False
        checked = limits is None or are_checked(revision, models, storage)
        return checked and is_measured(revision, models, shared, storage)

    number = baseline is None or baseline.isdecimal()
    step = int(baseline or 0) if number else None
    each_revision(run, one, is_kept, steps=steps, latest=latest, also=step)
    if baseline is not None and parse_hub(baseline) is not None:
        each_revision(models.open(baseline), one, is_kept)
