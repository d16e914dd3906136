"""Measures a run and checks its files. Hub revisions are downloaded and handled one by one."""

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
    """Measure a run, and check the files of its checkpoints.

    Args:
        run: the run.
        limits: limits of the file checks; None to check no files.
        baseline: see `measure_run`.
        shared: `models`, `settings`, `probe`, `max_tokens`, `progress` and `ranks`; see
            `measure_run`.
        storage: the store's options.
        steps: see `measure_run`.
        latest: see `measure_run`.

    Returns:
        The measured run, and the outcomes of the file checks by the checkpoint's path in the run.
    """
    measure_revisions(run, limits, baseline, shared, storage, steps=steps, latest=latest)
    checked: list[FilesChecked] = []
    choice: dict[str, Any] = {"steps": steps, "latest": latest}

    def check_first() -> None:
        if limits is not None:
            how = {"progress": shared["progress"], **storage}
            checked.append(check_files(run, shared["models"], limits, **choice, **how))

    measured = measure_folder(
        run, baseline=baseline, before_measuring=check_first, **choice, **shared, **storage
    )
    return measured, checked[0].outcomes if checked else {}


def measure_revisions(
    run: RunFolder,
    limits: Thresholds | None,
    baseline: str | None,
    shared: Mapping[str, Any],
    storage: Mapping[str, Any],
    *,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
) -> None:
    """Measure and check each Hub revision of a run alone, while its weights are on this machine.

    The results are in the store afterwards. For a run that is not on the Hub, nothing is done.
    The arguments are those of `measure_and_check`.
    """
    models = shared["models"]

    def measure_one(revision: RunFolder) -> None:
        if limits is not None:
            check_files(revision, models, limits, progress=shared["progress"], **storage)
        own = "init" if baseline == "init" else "none"
        measure_folder(revision, baseline=own, **shared, **storage)

    def is_stored(revision: RunFolder) -> bool:
        if baseline == "init":
            return False
        checked = limits is None or are_checked(revision, models, storage)
        return checked and is_measured(revision, models, shared, storage)

    is_step = baseline is None or baseline.isdecimal()
    step = int(baseline or 0) if is_step else None
    each_revision(run, measure_one, is_stored, steps=steps, latest=latest, also=step)
    if baseline is not None and parse_hub(baseline) is not None:
        each_revision(models.open(baseline), measure_one, is_stored)
