"""`demo` of the Python API: analyzes a sample run that is part of the package."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import moegeo_cli
from moegeo_cli.commands.analyze.api import analyze
from moegeo_cli.errors import PathError
from moegeo_cli.keywords import takes
from moegeo_cli.measuring.run import Listener
from moegeo_cli.options import Demo
from moegeo_cli.records import RunRecord

RUN = "unbalanced-mixtral"


def demo_run() -> Path:
    """The folder of the sample run, in the installed package or in a source checkout.

    Raises:
        PathError: the package was installed without the sample run.
    """
    package = Path(moegeo_cli.__file__).parent
    places = (package / "samples" / RUN, package.parent / "sample_checkpoints" / RUN)
    for place in places:
        if place.is_dir():
            return place
    raise PathError(
        "the sample run is missing from this installation",
        found=f"neither {places[0]} nor {places[1]}",
        hint="install moegeo from its wheel, or analyze your own run",
    )


@takes(Demo)
def demo(*, progress: Listener | None = None, **options: Unpack[Demo]) -> RunRecord:
    """Analyze a small trained run that is part of the package.

    Measurements are stored only if `cache_dir` is given.

    Args:
        progress: receives an event for each checkpoint and batch; None for none.
        options: see below.

    Returns:
        The run with its checkpoints, verdict and interventions.

    Raises:
        PathError: the package was installed without the sample run.
    """
    kept = options["cache_dir"]
    return analyze(demo_run(), progress=progress, cache=kept is not None, **options)
