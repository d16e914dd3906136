"""`inspect` of the Python API: describes a checkpoint or a run from headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from moegeo_cli.commands.inspect.describe import inspect_checkpoint
from moegeo_cli.commands.inspect.record import InspectionRecord
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.keywords import select_options, takes
from moegeo_cli.models.choosing import choose_models
from moegeo_cli.models.tree import trace_tree
from moegeo_cli.options import Model


@keeps_global_state
@takes(Model)
def inspect(path: Path | str, **options: Unpack[Model]) -> InspectionRecord:
    """Describe a checkpoint or a run from headers alone. No model is loaded.

    Args:
        path: a checkpoint or a run.
        options: see below. A `model` is described, not built.

    Returns:
        Layout, architecture, routers, completeness and training facts.

    Raises:
        MoegeoError: the path holds no checkpoint, or a damaged one.
    """
    models = choose_models(**select_options(Model, options))
    own = None if options["model"] is None else models
    return inspect_checkpoint(path, own, options["config"], trace_tree)
