"""`moegeo analyze`: measure a run's checkpoints, judge the run, and recommend what to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moegeo_cli.cli.console import (
    check_output,
    choose_format,
    say,
    show_progress,
    write_report,
)
from moegeo_cli.cli.gates import gate, write_step_summary
from moegeo_cli.cli.options import with_options
from moegeo_cli.errors import UsageError
from moegeo_cli.options import RunOutput
from moegeo_cli.registry import find_command

if TYPE_CHECKING:
    from moegeo_cli.records import RunRecord
    from moegeo_cli.sinks import Place


@with_options(*find_command("analyze").groups)
def analyze(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="One checkpoint, or a run: a folder of checkpoints.")
    ],
    options: dict[str, Any],
    exact_options: dict[str, Any],
    gate_options: dict[str, Any],
    output_options: dict[str, Any],
) -> int:
    """Measure a run's checkpoints, judge the run, and say what to do.

    [bold]moegeo analyze runs/my-moe[/bold]
    [bold]moegeo analyze runs/my-moe --latest --fail-on failing --format json[/bold]
    """
    from moegeo_cli.commands.analyze.api import analyze as measure
    from moegeo_cli.sinks import open_places

    if exact_options["exact"]:
        if options["unit"] == "sequence":
            raise UsageError(
                "--exact means --unit loss_token and does not go with another unit",
                found="--exact with --unit sequence",
            )
        options["unit"] = "loss_token"
    choose_format(output_options, RunOutput)
    check_output(output_options["output"])
    output_options["log"] = open_places(output_options["log"])
    with show_progress() as progress:
        record = measure(path, progress=progress, ranks=context.obj, **options)
    emit(record, path, **output_options)
    return gate(record.verdict, gate_options["fail_on"])


def _path_text(path: Path) -> str:
    """A path as the user typed it. pathlib removes one slash of hf://; it is added again."""
    text = str(path)
    return text.replace("hf:/", "hf://", 1) if text.startswith("hf:/") else text


def emit(
    record: RunRecord,
    path: Path,
    *,
    format: str,
    output: Path | None,
    full: bool,
    log: Sequence[Place],
) -> None:
    """Write the report in the chosen format, and the run's scalars."""
    from moegeo_cli.sinks import log_run

    output_options = {"format": format, "output": output, "full": full}
    if not write_report(record, output_options, _path_text(path)):
        _summarise(record, format)
    for line in log_run(record, log):
        say(line)


def _summarise(record: RunRecord, format: str) -> None:
    """Print the verdict on stderr when the report itself goes to stdout or a file."""
    if format == "github":
        write_step_summary(record)
    if record.verdict is not None:
        verdict = record.verdict
        say(f"verdict: {verdict.status} (routing {verdict.routing}, "
            f"performance {verdict.performance}); {verdict.policy} policy")  # fmt: skip
