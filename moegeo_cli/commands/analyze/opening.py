"""Opens the store of a run, and measures the run through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.commands.analyze.analysis import Analysis, measure_run
from moegeo_cli.errors import UsageError
from moegeo_cli.measuring.probe import open_probe
from moegeo_cli.measuring.run import RunMeasurement
from moegeo_cli.measuring.storing import NOT_KEPT, open_store
from moegeo_cli.models.given import Models
from moegeo_cli.records import RunRecord
from moegeo_cli.settings import Settings

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks


def measure_folder(
    folder: RunFolder,
    *,
    cache: bool,
    cache_dir: Path | str | None,
    baseline: str | None,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
    models: Models,
    **shared: Any,
) -> Analysis:
    """Open a run's store and measure the run.

    Args:
        folder: the run, or one checkpoint.
        cache: read and store measurements.
        cache_dir: the store's folder; None for .moegeo in the run.
        baseline: see `measure_run`.
        steps: see `measure_run`.
        latest: see `measure_run`.
        models: see `measure_run`.
        shared: all other arguments of `measure_run`.

    Raises:
        UsageError: options that do not go together.
        MoegeoError: see `measure_run`.
    """
    _refuse_together(shared["settings"], models, baseline, shared["ranks"])
    store = open_store(folder, cache, cache_dir, models)
    measured = measure_run(folder, store, baseline=baseline, steps=steps, latest=latest,
                           models=models, **shared)  # fmt: skip
    if store.problem is None:
        return measured
    run = add_notes(measured.record, [NOT_KEPT.format(store.problem)])
    return dataclasses.replace(measured, record=run)


def is_measured(
    run: RunFolder, models: Models, shared: Mapping[str, Any], storage: Mapping[str, Any]
) -> bool:
    """Whether the store holds the measurement of one checkpoint.

    Args:
        run: a run with that checkpoint only.
        models: builds the model.
        shared: `settings`, `probe` and `max_tokens` of the measurement.
        storage: the store's options.
    """
    loaded = open_probe(run, shared["probe"], shared["max_tokens"], models)
    store = open_store(run, storage["cache"], storage["cache_dir"], models)
    measurement = RunMeasurement(
        models.describe(run.newest), run.newest.config, loaded, shared["settings"], store, None,
        models,
    )  # fmt: skip
    key = measurement.key(run.newest.fingerprint(storage["verify_fingerprint"]))
    return store.record(key) is not None


def add_notes(run: RunRecord, notes: Sequence[str]) -> RunRecord:
    """Add notes on how the run was measured."""
    if not notes:
        return run
    return dataclasses.replace(run, run={**run.run, "notes": [*run.run["notes"], *notes]})


def _refuse_together(
    settings: Settings, models: Models, baseline: str | None, ranks: Ranks | None
) -> None:
    """Refuse combinations of placement, kind of model and number of ranks that do not work.

    Raises:
        UsageError: two options that do not go together.
    """
    own = "a model of your own, or captured inputs" if models.identity is not None else None
    parts = "--device-map" if settings.device_map is not None else None
    others = "torchrun" if ranks is not None else None
    split = f"--parallel {settings.parallel}" if settings.parallel != "data" else None
    init = "--baseline init" if baseline == "init" else None
    for one, other in ((parts, own), (parts, others), (parts, init), (split, init), (others, own)):
        if one is not None and other is not None:
            raise UsageError(
                "two options do not go together",
                found=f"{one} with {other}",
                hint="leave one of the two out",
            )
