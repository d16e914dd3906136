"""Options that say in which format a report is written, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypedDict

from moegeo_cli.keywords import OUTPUT, Option
from moegeo_cli.registry import formats_of_lenses, formats_of_reports

OUTPUT_FILE = Option(
    None, "Write the report to this file instead of stdout.", OUTPUT, flags=("--output", "-o")
)
LOG = Option(
    (), "Also write at most 30 scalars per checkpoint to SINK:WHERE. A checkpoint that is already "
    "there is not written again. Repeat the option for several sinks: "
    "tensorboard:DIR, wandb[:PROJECT], mlflow[:URI], trackio[:PROJECT], prometheus:FILE or "
    "jsonl:FILE (docs/how-to/dashboards.md).", OUTPUT, cli_type=list[str],
)  # fmt: skip


def _format(choices: Callable[[], tuple[str, ...]]) -> Option:
    return Option(
        None, "Format of the report. Default: by the suffix of --output, else rich.", OUTPUT,
        flags=("--format", "-f"), choices=choices,
    )  # fmt: skip


class Full(TypedDict, total=False):
    """How much a terminal report shows."""

    full: Annotated[bool, Option(
        False, "Print every table instead of the first screen.", OUTPUT,
    )]  # fmt: skip


class ReportOutput(Full, total=False):
    """The report of `check` and `compare`."""

    format: Annotated[str | None, _format(formats_of_reports)]
    output: Annotated[Path | None, OUTPUT_FILE]


class RunOutput(ReportOutput, total=False):
    """The report of `analyze`, and scalars for dashboards."""

    log: Annotated[Sequence[str], LOG]


class WatchOutput(TypedDict, total=False):
    """What `watch` does in addition to printing lines."""

    on_change: Annotated[str | None, Option(
        None, "A shell command to run when the verdict changes. Its environment has MOEGEO_RUN, "
        "MOEGEO_STEP, MOEGEO_VERDICT and MOEGEO_BEFORE.", OUTPUT,
    )]  # fmt: skip
    log: Annotated[Sequence[str], LOG]


class LensOutput(Full, total=False):
    """The report of a lens."""

    matrices: Annotated[Path | None, Option(
        None, "Also write the E×E matrices to this file: .safetensors or .csv.", OUTPUT,
    )]  # fmt: skip
    format: Annotated[str | None, _format(formats_of_lenses)]
    output: Annotated[Path | None, OUTPUT_FILE]


class FileOutput(TypedDict, total=False):
    """An output file."""

    output: Annotated[Path | None, OUTPUT_FILE]


class FactsOutput(TypedDict, total=False):
    """A table of facts, printed or as JSON."""

    format: Annotated[str | None, _format(lambda: ("rich", "json"))]
    output: Annotated[Path | None, OUTPUT_FILE]
