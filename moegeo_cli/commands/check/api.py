"""`check` of the Python API: checks a checkpoint or a run by its files alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.commands.check.run import (
    FilesChecked,
    ProgressListener,
    Reader,
    check_run,
    find_outcomes,
    skip_all,
)
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.measuring.revisions import each_revision, store_options_for
from moegeo_cli.measuring.storing import open_store
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.models.given import Models
from moegeo_cli.models.tree import trace_tree
from moegeo_cli.options import Check, CheckpointChoice, Model, Storage
from moegeo_cli.records import RunRecord
from moegeo_cli.records.check import CheckRecord
from moegeo_cli.store.cache import Store
from moegeo_cli.verdict import load_thresholds, recommend
from moegeo_cli.verdict.interventions import check_framework
from moegeo_cli.verdict.thresholds import Thresholds

CAPTURED = "with captured inputs only routers are read; `moegeo check` reads the other files"


def check_files(
    folder: RunFolder,
    models: Models,
    limits: Thresholds,
    *,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    verify_fingerprint: str = "sampled",
    progress: ProgressListener | None = None,
) -> FilesChecked:
    """Check the files of a run's checkpoints, for the verdict of `analyze`.

    With captured router inputs only routers may be read, so no file is checked.

    Args:
        folder: the run, or one checkpoint.
        models: describes the model of a checkpoint.
        limits: the limits of the rules.
        steps: only these steps, like "0,100-500".
        latest: only the newest checkpoint.
        cache: read and store results.
        cache_dir: the store's folder; None for .moegeo in the run.
        verify_fingerprint: "sampled" or "full".
        progress: receives an event for each checkpoint and each block of bytes read; None for none.

    Returns:
        The outcome of every rule at each checkpoint. If a file cannot be read, the rules are
        skipped and the outcome holds the reason.
    """
    chosen = choose_checkpoints(folder, steps, latest)
    if models.routers_only:
        return skip_all(chosen, CAPTURED)
    store = open_store(folder, cache, cache_dir, models)
    reader = _reader(store, False, verify_fingerprint, models, progress)
    return find_outcomes(folder, chosen, reader, limits)


def are_checked(run: RunFolder, models: Models, storage: Mapping[str, Any]) -> bool:
    """Whether the store holds everything that `check_files` needs for one checkpoint."""
    store = open_store(run, storage["cache"], storage["cache_dir"], models)
    reader = _reader(store, False, storage["verify_fingerprint"], models, None)
    return reader.has_stored(run.newest)


@keeps_global_state
@takes(Check)
def check(
    path: Path | str, *, progress: ProgressListener | None = None, **options: Unpack[Check]
) -> CheckRecord:
    """Check a checkpoint or a run by its files alone: no model is built, no data is needed.

    Args:
        path: one checkpoint, or a folder of them.
        progress: receives an event for each checkpoint and each block of bytes read; None for none.
        options: see below. With `verify_fingerprint` "sampled", a checkpoint counts as unchanged
            while names, sizes and times of its files are the same; with "full", while every byte
            is the same. A `model` is described, not built.

    Returns:
        The checkpoints with their numbers, the verdict, and what to do.

    Raises:
        MoegeoError: bad input; `errors.py` lists the subclasses.
    """
    limits = load_thresholds(options["thresholds"])
    check_framework(options["framework"])
    models = choose_models(**select_options(Model, options))
    folder = models.open(path)
    which = select_options(CheckpointChoice, options)
    chosen = choose_checkpoints(folder, **which)
    trained = folder.newest.training
    with store_options_for([folder], select_options(Storage, options)) as storage:
        store = open_store(folder, storage["cache"], storage["cache_dir"], models)
        reader = _reader(store, options["quick"], options["verify_fingerprint"], models, progress)
        each_revision(
            folder, lambda one: reader.read(one.name, one.checkpoints),
            lambda one: reader.has_stored(one.newest), **which,
        )  # fmt: skip
        record = check_run(folder, chosen, reader, limits, trained)
    assert record.verdict is not None
    log: list[Mapping[str, Any]] = [dict(entry) for entry in trained.log]
    about = RunRecord.of_facts({**record.run, "training": dict(trained.settings), "log": log})
    advice = recommend(about, record.verdict.findings, options["framework"])
    return dataclasses.replace(record, interventions=advice)


def _reader(
    store: Store, quick: bool, mode: str, models: Models, progress: ProgressListener | None
) -> Reader:
    own = models if models.own else None
    return Reader(store, quick, mode, own, models.identity, progress, trace_tree)
