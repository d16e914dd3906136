"""`invariance` of the Python API: which numbers survive rewritings of the weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Unpack

from moegeo_cli.commands.invariance.record import InvarianceRecord
from moegeo_cli.errors import UsageError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import part, takes
from moegeo_cli.measuring.probe import MINIMUM_TOKENS, open_probe
from moegeo_cli.measuring.revisions import bring
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
    """Which numbers of a checkpoint survive rewritings that leave its outputs unchanged.

    Args:
        path: a checkpoint, or a run: then its newest one.
        progress: is called as measurements end.
        options: see below. `max_tokens` None takes 8,192; `seed` is also of the rewritings.

    Returns:
        The checkpoint, the probe and the settings; in `invariance` one entry a rewriting.

    Raises:
        MoegeoError: bad input.
    """
    from moegeo_cli.commands.invariance.measure import measure_invariance

    models = choose_models(**part(Model, options))
    folder = models.open(path)
    bring(folder)
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
