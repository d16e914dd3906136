"""`invariance` of the Python API: which metrics stay the same when the weights are rewritten."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

from moegeo_cli.commands.invariance.record import InvarianceRecord
from moegeo_cli.errors import UsageError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.measuring.probe import MINIMUM_TOKENS, open_probe
from moegeo_cli.measuring.revisions import fetch_weights
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.options import Invariance, Model
from moegeo_cli.probes import Source
from moegeo_cli.settings import Settings, settings_of


@keeps_global_state
@takes(Invariance)
def invariance(
    path: Path | str, *, progress: Listener | None = None, **options: Unpack[Invariance]
) -> InvarianceRecord:
    """Measure which metrics change when weights are rewritten so that the outputs stay equal.

    Args:
        path: a checkpoint, or a run (its newest checkpoint is used).
        progress: receives an event for each measurement and batch; None for none.
        options: see below. If `max_tokens` is None, 8,192 tokens are used. `seed` also seeds the
            rewritings.

    Returns:
        The checkpoint, the probe and the settings; `invariance` has one entry per rewriting.

    Raises:
        MoegeoError: bad input; `errors.py` lists the subclasses.
    """
    from moegeo_cli.commands.invariance.measure import measure_invariance

    models = choose_models(**select_options(Model, options))
    folder = models.open(path)
    fetch_weights(folder)
    architecture = models.describe(folder.newest)
    if options["fisher"] == "adam":
        raise UsageError(
            "--fisher adam cannot be used: the optimizer's state does not fit rewritten weights",
            found="--fisher adam",
            hint="use --fisher empirical or categorical",
        )
    tokens = options["max_tokens"] or MINIMUM_TOKENS
    loaded = open_probe(folder, Source.from_options(options), tokens, models)
    settings = settings_of(Settings, {**options, "dtype": "float32"})
    models.check(folder.newest, architecture)
    return InvarianceRecord(
        name=folder.newest.path.resolve().name,
        checkpoint=folder.newest.relative,
        model_type=architecture.model_type,
        probe=loaded.describe(),
        settings=dataclasses.asdict(settings),
        invariance=measure_invariance(
            folder.newest, architecture, loaded, settings, progress, models
        ),
    )
