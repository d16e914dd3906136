"""`check` of the Python API: what the files of a checkpoint or a run tell by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.commands.check.run import (
    FilesChecked,
    Hearer,
    Reader,
    check_run,
    find_outcomes,
    none_checked,
)
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import part, takes
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.measuring.revisions import each_revision, kept_for
from moegeo_cli.measuring.storing import open_store
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.models.given import Models
from moegeo_cli.models.tree import fill_tree
from moegeo_cli.options import Check, Chosen, Model, Storage
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
    progress: Hearer | None = None,
) -> FilesChecked:
    """What `check` finds at each checkpoint of a run, for the verdict of that run.

    Where router inputs were captured, nothing but routers may be read: then nothing is checked.

    Args:
        folder: the run, or one checkpoint.
        models: what model it is of.
        limits: the limits.
        steps: as in `check`, as are all that follow.
        latest: likewise.
        cache: likewise.
        cache_dir: likewise.
        verify_fingerprint: likewise.
        progress: likewise.
    """
    chosen = choose_checkpoints(folder, steps, latest)
    if not models.whole:
        return none_checked(chosen, CAPTURED)
    store = open_store(folder, cache, cache_dir, models)
    reader = _reader(store, False, verify_fingerprint, models, progress)
    return find_outcomes(folder, chosen, reader, limits)


def are_checked(run: RunFolder, models: Models, storage: Mapping[str, Any]) -> bool:
    """Whether the store holds what `check_files` reads of one checkpoint."""
    store = open_store(run, storage["cache"], storage["cache_dir"], models)
    reader = _reader(store, False, storage["verify_fingerprint"], models, None)
    return reader.keeps(run.newest)


@keeps_global_state
@takes(Check)
def check(
    path: Path | str, *, progress: Hearer | None = None, **options: Unpack[Check]
) -> CheckRecord:
    """Check a checkpoint or a run by its files alone: no model is built, no data is needed.

    Args:
        path: one checkpoint, or a folder of them.
        progress: is called as bytes are read.
        options: see below. With `verify_fingerprint` "sampled", a checkpoint is the same while its
            files' names, sizes and times are; with "full", while every byte is. A `model` is not
            built.

    Returns:
        Checkpoints with their numbers, the verdict, and what to do.

    Raises:
        MoegeoError: bad input, by its subclasses; `errors.py` lists them.
    """
    limits = load_thresholds(options["thresholds"])
    check_framework(options["framework"])
    models = choose_models(**part(Model, options))
    folder = models.open(path)
    which = part(Chosen, options)
    chosen = choose_checkpoints(folder, **which)
    trained = folder.newest.training
    with kept_for([folder], part(Storage, options)) as storage:
        store = open_store(folder, storage["cache"], storage["cache_dir"], models)
        reader = _reader(store, options["quick"], options["verify_fingerprint"], models, progress)
        each_revision(
            folder, lambda one: reader.read(one.name, one.checkpoints),
            lambda one: reader.keeps(one.newest), **which,
        )  # fmt: skip
        record = check_run(folder, chosen, reader, limits, trained)
    assert record.verdict is not None
    log: list[Mapping[str, Any]] = [dict(entry) for entry in trained.log]
    about = RunRecord.of_facts({**record.run, "training": dict(trained.settings), "log": log})
    advice = recommend(about, record.verdict.findings, options["framework"])
    return dataclasses.replace(record, interventions=advice)


def _reader(
    store: Store, quick: bool, mode: str, models: Models, progress: Hearer | None
) -> Reader:
    own = models if models.own else None
    return Reader(store, quick, mode, own, models.identity, progress, fill_tree)
