"""The Python API, which the command line itself uses: paths in, records out, nothing printed.

from moegeo_cli import analyze
run = analyze("runs/my-moe")
run.verdict.status
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from moegeo_cli.api_check import check_files
from moegeo_cli.checkpoints.inspection import inspect_checkpoint
from moegeo_cli.errors import UsageError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.measurement.comparing import check_axis, compare_runs, pair_losses
from moegeo_cli.measurement.filling import fill_tree
from moegeo_cli.measurement.lenses import lens_notes
from moegeo_cli.measurement.models import choose_models
from moegeo_cli.measurement.opening import add_notes, measure_path
from moegeo_cli.measurement.probe import MINIMUM_TOKENS, default_tokens, open_probe
from moegeo_cli.measurement.run import Listener
from moegeo_cli.measurement.settings import Settings, settings_of
from moegeo_cli.options import Analyze, Chosen, Compare, Invariance, Model, Storage, part, takes
from moegeo_cli.records import Metric, RunRecord
from moegeo_cli.records.comparison import ComparisonRecord, SharedBytes
from moegeo_cli.triage.run import FilesChecked
from moegeo_cli.triage.sharing import share
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
        progress: is called as checkpoints are measured.
        ranks: who shares the probe, on rank 0 (the others serve); None for this process alone.
        options: see below.

    Returns:
        The run with its checkpoints, verdict and interventions.

    Raises:
        MoegeoError: bad input, by its subclasses; `errors.py` lists them.
    """
    limits = load_thresholds(options["thresholds"])
    check_framework(options["framework"])
    settings = settings_of(Settings, options)
    captures, reference = options["captures"], options["reference"]
    models = choose_models(captures=captures, **part(Model, options))
    if captures is not None and (options["fisher"] == "adam" or options["baseline"] == "init"):
        raise UsageError(
            "routers alone have neither an optimizer's state nor fresh initialisations",
            found="--captures with --fisher adam"
            if options["fisher"] == "adam"
            else "--captures with --baseline init",
            hint="use --fisher categorical, and --baseline STEP, PATH or none",
        )
    max_tokens = options["max_tokens"]
    if max_tokens is None and reference is not None:  # paired: both need the same draw
        max_tokens = max(default_tokens(models.open(p), models) for p in (path, reference))
    shared: dict[str, Any] = {
        "models": models, "settings": settings, "probe": options["probe"],
        "max_tokens": max_tokens, "progress": progress, "ranks": ranks, **part(Storage, options),
    }  # fmt: skip
    chosen = part(Chosen, options)
    told: list[FilesChecked] = []
    measured = measure_path(
        path, baseline=options["baseline"], **chosen, **shared,
        before=lambda: told.append(
            check_files(path, models, limits, progress=progress, **chosen, **part(Storage, options))
        ),
    )  # fmt: skip
    [files] = told
    run = measured.record
    other: RunRecord | None = None
    losses: dict[str, Metric] = {}
    if reference is not None:
        healthy = measure_path(reference, baseline=None, **shared)
        other = judge(healthy.record, policy=options["policy"], thresholds=limits)
        losses = pair_losses(measured, healthy, settings)
    settings_said = {
        **run.settings,
        "policy": options["policy"],
        "reference": None if reference is None else Path(reference).name,
    }
    run = dataclasses.replace(run, settings=settings_said)
    lenses = measured.lenses()
    run = add_notes(run, lens_notes(lenses[run.newest.path]))
    run = judge(run, reference=other, policy=options["policy"], thresholds=limits,
                paired_losses=losses, lenses=lenses, files=files.outcomes)  # fmt: skip
    assert run.verdict is not None
    advice = recommend(run, run.verdict.findings, options["framework"])
    return dataclasses.replace(run, interventions=advice)


@keeps_global_state
@takes(Compare)
def compare(
    run_a: Path | str,
    run_b: Path | str,
    *,
    progress: Listener | None = None,
    ranks: Ranks | None = None,
    **options: Unpack[Compare],
) -> ComparisonRecord:
    """Set two runs side by side at matched progress.

    Args:
        run_a: a run, or one checkpoint.
        run_b: the other.
        progress: is called as checkpoints are measured.
        ranks: who shares the probe, as in `analyze`.
        options: see below. `max_tokens` None takes what the larger need of the two runs is.

    Returns:
        Differences, b minus a, with intervals paired by probe sequence; which run is
        healthier, and why.

    Raises:
        MoegeoError: bad input, or runs that cannot be compared.
    """
    limits = load_thresholds(options["thresholds"])
    settings = settings_of(Settings, options)
    models = choose_models(**part(Model, options))
    runs = [models.open(path) for path in (run_a, run_b)]
    check_axis(runs, options["by"])
    max_tokens = options["max_tokens"]
    if max_tokens is None:  # paired: both need the same draw, of any probe
        max_tokens = max(default_tokens(run, models) for run in runs)
    kept = part(Storage, options)
    a, b = (
        measure_path(path, baseline=options["baseline"], settings=settings, probe=options["probe"],
                     max_tokens=max_tokens, models=models, progress=progress, ranks=ranks, **kept)
        for path in (run_a, run_b)
    )  # fmt: skip
    files = tuple(
        check_files(path, models, limits, progress=progress, **kept) for path in (run_a, run_b)
    )
    judged = (
        judge(a.record, policy=options["policy"], thresholds=limits, files=files[0].outcomes),
        judge(b.record, policy=options["policy"], thresholds=limits, files=files[1].outcomes),
    )

    def shared(one: str, other: str) -> SharedBytes | None:
        sums = files[0].sums.get(one), files[1].sums.get(other)
        return None if sums[0] is None or sums[1] is None else share(sums[0], sums[1])

    return compare_runs(
        a, b, judged, settings, by=options["by"], force=options["force"], shared=shared
    )


@keeps_global_state
@takes(Model)
def inspect(path: Path | str, **options: Unpack[Model]) -> dict[str, Any]:
    """What a checkpoint or a run is, from headers alone; loads no model and imports no torch.

    Args:
        path: a checkpoint or a run.
        options: see below. A `model` is named in the answer, not built.

    Raises:
        MoegeoError: no checkpoint there, or a damaged one.
    """
    models = choose_models(**part(Model, options))
    own = None if options["model"] is None else models
    return inspect_checkpoint(Path(path), own, options["config"], fill_tree)


@keeps_global_state
@takes(Invariance)
def invariance(
    path: Path | str, *, progress: Listener | None = None, **options: Unpack[Invariance]
) -> dict[str, Any]:
    """Which numbers of a checkpoint survive rewritings that leave its outputs unchanged.

    Args:
        path: a checkpoint, or a run: then its newest one.
        progress: is called as measurements end.
        options: see below. `max_tokens` None takes 8,192; `seed` is also of the rewritings.

    Returns:
        `name`, `checkpoint`, `model_type`, `probe`, `settings`, and `invariance`: one entry a
        transformation.

    Raises:
        MoegeoError: bad input.
    """
    from moegeo_cli.measurement.invariance import measure_invariance

    models = choose_models(**part(Model, options))
    folder = models.open(path)
    document, architecture = models.describe(folder.newest.path)
    if options["fisher"] == "adam":
        raise UsageError(
            "an optimizer's state is of the weights as they were saved",
            found="--fisher adam",
            hint="use --fisher empirical or categorical",
        )
    tokens = options["max_tokens"] or MINIMUM_TOKENS
    loaded = open_probe(folder, options["probe"], tokens, models)
    settings = settings_of(Settings, {**options, "dtype": "float32"})
    models.check(folder.newest.path, architecture)
    return {
        "name": folder.newest.path.resolve().name,
        "checkpoint": folder.newest.relative,
        "model_type": architecture.model_type,
        "probe": loaded.describe(),
        "settings": dataclasses.asdict(settings),
        "invariance": measure_invariance(
            folder.newest, architecture, document, loaded, settings, progress, models
        ),
    }
