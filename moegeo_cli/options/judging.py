"""Options that say how measurements are judged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from moegeo_cli.keywords import JUDGING, Option


class Limits(TypedDict, total=False):
    """The limits of the verdict."""

    thresholds: Annotated[Mapping[str, Any] | Path | str | None, Option(
        None, "Limits of the verdict that replace the calibrated ones "
        "(docs/reference/findings.md). In Python: a table, or the path of a TOML file.",
        JUDGING, settings_file_only=True,
    )]  # fmt: skip


class Policy(TypedDict, total=False):
    """Which rules judge."""

    policy: Annotated[Literal["calibrated", "paper"], Option(
        "calibrated", "calibrated: limits from measured runs. paper: FHS > 1 is failing.", JUDGING,
    )]  # fmt: skip


class Framework(TypedDict, total=False):
    """The training framework of the run."""

    framework: Annotated[str | None, Option(
        None, "The training framework whose settings interventions name. Default: found from the "
        "checkpoint.", JUDGING,
    )]  # fmt: skip


class Reference(TypedDict, total=False):
    """A run to compare the loss with."""

    reference: Annotated[Path | str | None, Option(
        None, "A healthy run to compare the loss with.", JUDGING, cli_type=Path,
    )]  # fmt: skip


class Gate(TypedDict, total=False):
    """When the command line exits with an error code for the sake of the verdict."""

    fail_on: Annotated[Literal["watch", "failing", "never"], Option(
        "never", "Exit with code 1 at this status or worse, with code 3 if inconclusive.", JUDGING,
    )]  # fmt: skip
