"""`compare` of the Python API: compares two runs at matched progress."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from moegeo_cli.commands.analyze.analysis import Analysis
from moegeo_cli.commands.analyze.opening import measure_folder
from moegeo_cli.commands.analyze.revisions import measure_revisions
from moegeo_cli.commands.check.api import check_files
from moegeo_cli.commands.check.run import FilesChecked
from moegeo_cli.commands.check.sharing import share
from moegeo_cli.commands.compare.measure import check_axis, compare_runs
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.probe import default_tokens
from moegeo_cli.measuring.revisions import store_options_for
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Compare, Model, Storage
from moegeo_cli.probes import Source
from moegeo_cli.records.comparison import ComparisonRecord, SharedBytes
from moegeo_cli.settings import Settings, settings_of
from moegeo_cli.verdict import judge, load_thresholds
from moegeo_cli.verdict.thresholds import Thresholds

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks


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
    """Compare two runs at matched progress.

    Args:
        run_a: a run, or one checkpoint.
        run_b: the other run or checkpoint.
        progress: receives an event for each checkpoint and batch; None for none.
        ranks: the processes that share the probe, on rank 0; None for this process alone.
        options: see below. If `max_tokens` is None, both runs use the larger of their defaults.

    Returns:
        Differences, b minus a, with intervals paired by probe sequence; which run is
        healthier, and why.

    Raises:
        MoegeoError: bad input, or runs that cannot be compared.
    """
    limits = load_thresholds(options["thresholds"])
    settings = settings_of(Settings, options)
    models = choose_models(**select_options(Model, options))
    runs = [models.open(path) for path in (run_a, run_b)]
    check_axis(runs, options["by"])
    max_tokens = options["max_tokens"]
    if max_tokens is None:  # paired differences need the same tokens
        max_tokens = max(default_tokens(run, models) for run in runs)
    how: dict[str, Any] = {
        "models": models, "settings": settings, "probe": Source.from_options(options),
        "max_tokens": max_tokens, "progress": progress, "ranks": ranks,
    }  # fmt: skip
    baseline = options["baseline"]
    with store_options_for(runs, select_options(Storage, options), ranks) as kept:
        for run in runs:
            measure_revisions(run, limits, baseline, how, kept)
        a, b = (measure_folder(run, baseline=baseline, **how, **kept) for run in runs)
        files = tuple(check_files(run, models, limits, progress=progress, **kept) for run in runs)
        return _compare(a, b, files, limits, settings, options)


def _compare(
    a: Analysis,
    b: Analysis,
    files: tuple[FilesChecked, ...],
    limits: Thresholds,
    settings: Settings,
    options: Mapping[str, Any],
) -> ComparisonRecord:
    """Judge two measured runs and compare them."""
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
