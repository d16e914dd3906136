"""`experts` of the Python API: measures experts as functions, and their inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

from moegeo_cli.commands.analyze.lenses import describe_run, keep_lens
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.probe import open_probe
from moegeo_cli.measuring.revisions import fetch_weights
from moegeo_cli.measuring.run import Listener
from moegeo_cli.measuring.storing import NOT_KEPT, open_store
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Experts, Model
from moegeo_cli.probes import Source
from moegeo_cli.settings import settings_of
from moegeo_cli.verdict import load_thresholds
from moegeo_cli.verdict.interventions import check_framework
from moegeo_cli.verdict.lenses import judge_lens


@keeps_global_state
@takes(Experts)
def experts(
    path: Path | str, *, progress: Listener | None = None, **options: Unpack[Experts]
) -> ExpertsRecord:
    """Measure how similar a checkpoint's experts are, in function and in inputs.

    Args:
        path: a checkpoint, or a run (its newest checkpoint is used).
        progress: receives an event for each checkpoint and batch; None for none.
        options: see below. With `captures`, only the experts' inputs are measured.

    Returns:
        Layers with metrics, matrices and experts; merge and prune candidates, best first; findings
        and what to do.

    Raises:
        MoegeoError: bad input; `errors.py` lists the subclasses.
    """
    from moegeo_cli.commands.experts.measure import measure_experts

    settings = settings_of(ExpertSettings, options)
    limits = load_thresholds(options["thresholds"])
    check_framework(options["framework"])
    models = choose_models(captures=options["captures"], **select_options(Model, options))
    folder = models.open(path)
    fetch_weights(folder)
    architecture = models.describe(folder.newest)
    loaded = open_probe(folder, Source.from_options(options), options["max_tokens"], models)
    models.check(folder.newest, architecture)
    fingerprint = folder.newest.fingerprint(options["verify_fingerprint"])
    record = measure_experts(folder.newest, architecture, loaded, settings, models,
                             progress)  # fmt: skip
    record = dataclasses.replace(record, fingerprint=fingerprint)
    store = open_store(folder, options["cache"], options["cache_dir"], models)
    keep_lens(store, "experts", record, models)
    if store.problem is not None:
        notes = (*record.notes, NOT_KEPT.format(store.problem))
        record = dataclasses.replace(record, notes=notes)
    about = describe_run(folder.newest, architecture)
    return judge_lens("experts", record, limits, about, options["framework"])
