"""A run and what was measured of it, through the store that is kept with it."""

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
    """Measure a run through its store.

    Args:
        folder: the run, or one checkpoint.
        cache: read and keep measurements.
        cache_dir: where; None for with the run.
        baseline: as `measure_run` takes it, as are all that follow.
        steps: likewise.
        latest: likewise.
        models: likewise.
        shared: likewise.

    Raises:
        MoegeoError: what measuring raises.
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
        run: of that checkpoint alone.
        models: what model it is of.
        shared: how it is measured: `settings`, `probe`, `max_tokens`.
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
    """The run with further notes on how it was measured."""
    if not notes:
        return run
    return dataclasses.replace(run, run={**run.run, "notes": [*run.run["notes"], *notes]})


def _refuse_together(
    settings: Settings, models: Models, baseline: str | None, ranks: Ranks | None
) -> None:
    """Refuse options that do not go together: placement, kind of model, several ranks."""
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
