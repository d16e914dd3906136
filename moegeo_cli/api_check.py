"""`check` of the Python API: what the files of a checkpoint or a run tell by themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.training import read_training
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.measurement.choosing import choose_checkpoints
from moegeo_cli.measurement.filling import fill_tree
from moegeo_cli.measurement.models import CapturedInputs, Models, choose_models
from moegeo_cli.measurement.storing import open_store
from moegeo_cli.records import RunRecord
from moegeo_cli.records.check import CheckRecord
from moegeo_cli.store.cache import Store
from moegeo_cli.triage.run import (
    FilesChecked,
    Hearer,
    Reader,
    check_run,
    find_outcomes,
    none_checked,
)
from moegeo_cli.verdict import load_thresholds, recommend
from moegeo_cli.verdict.interventions import check_framework
from moegeo_cli.verdict.thresholds import Thresholds

CAPTURED = "with captured inputs routers alone are read: `moegeo check` reads the rest"


def check_files(
    path: Path | str,
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
        path: the run, or one checkpoint.
        models: what model it is of.
        limits: the limits.
        steps: as in `check`, as are all that follow.
        latest: likewise.
        cache: likewise.
        cache_dir: likewise.
        verify_fingerprint: likewise.
        progress: likewise.

    Raises: what opening the run raises.
    """
    folder = models.open(path)
    chosen = choose_checkpoints(folder, steps, latest)
    if isinstance(models, CapturedInputs):
        return none_checked(chosen, CAPTURED)
    store = open_store(folder, cache, cache_dir, models)
    reader = _reader(store, False, verify_fingerprint, models, progress)
    return find_outcomes(folder, chosen, reader, limits)


@keeps_global_state
def check(
    path: Path | str,
    *,
    quick: bool = False,
    config: Path | str | None = None,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    verify_fingerprint: str = "sampled",
    framework: str | None = None,
    thresholds: Mapping[str, Any] | Path | str | None = None,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    progress: Hearer | None = None,
) -> CheckRecord:
    """Check a checkpoint or a run by its files alone: no model is built, no data is needed.

    Args:
        path: one checkpoint, or a folder of them.
        quick: read routers, biases and norms alone; experts are not looked at.
        config: a config.json, or a folder with one, for checkpoints without their own.
        steps: only these steps, like "0,100-500".
        latest: only the newest checkpoint, and so nothing that needs two.
        cache: keep what was read, and read nothing twice.
        cache_dir: where; None for `.moegeo` in the run.
        verify_fingerprint: "sampled": a checkpoint is the same while its files' names, sizes and
            times are; "full": while every byte is.
        framework: whose keys interventions name; None to find it from the checkpoint.
        thresholds: overrides, as a table or the path of a TOML file.
        model: names a model of your own; it is not built.
        router: its routers, by a pattern over module names; None to find them by structure.
        top_k: experts a token, where its config does not say.
        scoring: softmax, sigmoid or sqrt_softplus, where its config does not say.
        progress: hears how far the work is, in bytes.

    Returns:
        Checkpoints with their numbers, the verdict, and what to do.

    Raises:
        MoegeoError: bad input, by its subclasses; `errors.py` lists them.
    """
    limits = load_thresholds(thresholds)
    check_framework(framework)
    models = choose_models(model, router, top_k, scoring, config=config)
    folder = models.open(path)
    chosen = choose_checkpoints(folder, steps, latest)
    store = open_store(folder, cache, cache_dir, models)
    reader = _reader(store, quick, verify_fingerprint, models, progress)
    trained = read_training(folder.newest)
    record = check_run(folder, chosen, reader, limits, trained)
    assert record.verdict is not None
    log: list[Mapping[str, Any]] = [dict(entry) for entry in trained.log]
    about = RunRecord.of_facts({**record.run, "training": dict(trained.settings), "log": log})
    return dataclasses.replace(
        record, interventions=recommend(about, record.verdict.findings, framework)
    )


def _reader(
    store: Store, quick: bool, mode: str, models: Models, progress: Hearer | None
) -> Reader:
    own = models if models.own else None
    return Reader(store, quick, mode, own, models.identity, progress, fill_tree)
