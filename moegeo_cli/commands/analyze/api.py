"""`analyze` of the Python API: measures a run, judges it, and recommends what to change."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from moegeo_cli.commands.analyze.lenses import lens_notes
from moegeo_cli.commands.analyze.opening import add_notes
from moegeo_cli.commands.analyze.revisions import measure_and_check
from moegeo_cli.commands.compare.measure import pair_losses
from moegeo_cli.errors import UsageError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.keeping import keep_report
from moegeo_cli.measuring.probe import default_tokens
from moegeo_cli.measuring.revisions import store_options_for
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Analyze, CheckpointChoice, Model, Storage
from moegeo_cli.probes import Source
from moegeo_cli.records import Metric, RunRecord
from moegeo_cli.settings import Settings, settings_of
from moegeo_cli.verdict import judge, load_thresholds, recommend
from moegeo_cli.verdict.interventions import check_framework

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks


@keeps_global_state
@takes(Analyze)
def analyze(
    path: Path | str,
    *,
    progress: Listener | None = None,
    ranks: Ranks | None = None,
    **options: Unpack[Analyze],
) -> RunRecord:
    """Measure the checkpoints of a run, judge the run, and recommend what to change.

    Args:
        path: one checkpoint, or a folder of them.
        progress: receives an event for each checkpoint and batch; None for none.
        ranks: the processes that share the probe, on rank 0; None for this process alone.
        options: see below.

    Returns:
        The run with its checkpoints, verdict and interventions.

    Raises:
        MoegeoError: bad input; `errors.py` lists the subclasses.
    """
    limits = load_thresholds(options["thresholds"])
    check_framework(options["framework"])
    settings = settings_of(Settings, options)
    captures, reference = options["captures"], options["reference"]
    models = choose_models(captures=captures, **select_options(Model, options))
    if captures is not None and (options["fisher"] == "adam" or options["baseline"] == "init"):
        raise UsageError(
            "--captures measures routers without a model: there is no optimizer state and no fresh "
            "initialisation",
            found="--captures with --fisher adam"
            if options["fisher"] == "adam"
            else "--captures with --baseline init",
            hint="use --fisher categorical, and --baseline STEP, PATH or none",
        )
    folder = models.open(path)
    reference_folder = None if reference is None else models.open(reference)
    max_tokens = options["max_tokens"]
    if max_tokens is None and reference_folder is not None:  # paired losses need the same tokens
        max_tokens = max(default_tokens(run, models) for run in (folder, reference_folder))
    shared: dict[str, Any] = {
        "models": models, "settings": settings, "probe": Source.from_options(options),
        "max_tokens": max_tokens, "progress": progress, "ranks": ranks,
    }  # fmt: skip
    reference_run: RunRecord | None = None
    losses: dict[str, Metric] = {}
    with store_options_for(
        (folder, reference_folder), select_options(Storage, options), ranks
    ) as storage:
        measured, files = measure_and_check(
            folder,
            limits,
            options["baseline"],
            shared,
            storage,
            **select_options(CheckpointChoice, options),
        )
        if reference_folder is not None:
            healthy, _ = measure_and_check(reference_folder, None, None, shared, storage)
            reference_run = judge(healthy.record, policy=options["policy"], thresholds=limits)
            losses = pair_losses(measured, healthy, settings)
        run = measured.record
        all_settings = {
            **run.settings,
            "policy": options["policy"],
            "reference": None if reference is None else Path(reference).name,
        }
        run = dataclasses.replace(run, settings=all_settings)
        lenses = measured.lenses()
        run = add_notes(run, lens_notes(lenses[run.newest.path]))
        run = judge(run, reference=reference_run, policy=options["policy"], thresholds=limits,
                    paired_losses=losses, lenses=lenses, files=files)  # fmt: skip
        assert run.verdict is not None
        advice = recommend(run, run.verdict.findings, options["framework"])
        run = dataclasses.replace(run, interventions=advice)
        keep_report(measured.measurement.store, path, run)
    return run
