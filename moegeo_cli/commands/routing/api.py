"""`routing` of the Python API: measures what a checkpoint's routing depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

from moegeo_cli.commands.analyze.lenses import describe_run, keep_lens
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.choosing import choose_checkpoints
from moegeo_cli.measuring.probe import default_tokens, open_probe
from moegeo_cli.measuring.revisions import fetch_weights
from moegeo_cli.measuring.run import Listener
from moegeo_cli.measuring.storing import NOT_KEPT, open_store
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Model, Routing
from moegeo_cli.probes import Source
from moegeo_cli.settings import settings_of
from moegeo_cli.verdict import load_thresholds
from moegeo_cli.verdict.interventions import check_framework
from moegeo_cli.verdict.lenses import judge_lens


@keeps_global_state
@takes(Routing)
def routing(
    path: Path | str,
    other: Path | str | None = None,
    *,
    progress: Listener | None = None,
    **options: Unpack[Routing],
) -> RoutingRecord:
    """Measure what routing depends on: geometry, shared directions, domains, depth, prompts.

    Args:
        path: a checkpoint, or a run. Of a run, the newest checkpoint is measured in full, and some
            metrics are followed over all checkpoints.
        other: a second model's checkpoint or run (its newest checkpoint), compared with the first
            on the same tokens. Then only the newest checkpoint of `path` is measured.
        progress: receives an event for each checkpoint and batch; None for none.
        options: see below. `seed` also seeds permutations and generated tokens.

    Returns:
        Routers with metrics, pairs and matrices; domains; the run's trajectory; the second model;
        findings and what to do.

    Raises:
        MoegeoError: bad input; `errors.py` lists the subclasses.
    """
    from moegeo_cli.commands.routing.measure import measure_routing_record

    settings = settings_of(RoutingSettings, options)
    limits = load_thresholds(options["thresholds"])
    check_framework(options["framework"])
    captures, max_tokens = options["captures"], options["max_tokens"]
    models = choose_models(captures=captures, **select_options(Model, options))
    folder = models.open(path)
    other_folder = None if other is None else models.open(other)
    fetch_weights(*(run for run in (folder, other_folder) if run is not None))
    if other_folder is not None and max_tokens is None and captures is None:
        max_tokens = max(default_tokens(run, models) for run in (folder, other_folder))
    loaded = open_probe(folder, Source.from_options(options), max_tokens, models)
    latest = options["latest"] or other_folder is not None
    chosen = choose_checkpoints(folder, options["steps"], latest)
    second = None
    if other_folder is not None:
        probe = open_probe(other_folder, Source.from_options(options), max_tokens, models)
        second = (other_folder.newest, probe)
    record = measure_routing_record(chosen, models, loaded, settings, second, progress)
    store = open_store(folder, options["cache"], options["cache_dir"], models)
    keep_lens(store, "routing", dataclasses.replace(record, other=None), models)
    if store.problem is not None:
        notes = (*record.notes, NOT_KEPT.format(store.problem))
        record = dataclasses.replace(record, notes=notes)
    about = describe_run(folder.newest, models.describe(folder.newest))
    return judge_lens("routing", record, limits, about, options["framework"])
