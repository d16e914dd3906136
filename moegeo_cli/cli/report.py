"""`moegeo report`: write a stored report again in any format, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.analyze import emit
from moegeo_cli.cli.console import check_output, choose_format, write_report
from moegeo_cli.cli.gates import write_step_summary
from moegeo_cli.cli.options import with_options
from moegeo_cli.errors import UsageError
from moegeo_cli.options import RunOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("report").groups)
def report(
    path: Annotated[
        Path,
        typer.Argument(help="A run or checkpoint that was analyzed, or a JSON report of moegeo."),
    ],
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Show the last analysis again, in any format, without loading a model.

    [bold]moegeo report runs/my-moe -o run.html[/bold]
    [bold]moegeo report experts.json -o experts.html[/bold]
    """
    from moegeo_cli.commands.report.api import report as load
    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.sinks import open_places

    choose_format(output_options, RunOutput)
    check_output(output_options["output"])
    output_options["log"] = open_places(output_options["log"])
    record = load(path, **options)
    if isinstance(record, RunRecord):
        emit(record, path, **output_options)
        return
    if output_options["log"]:
        raise UsageError(
            "--log needs a report of `moegeo analyze`", found=f"{path} is of another command"
        )
    write_report(record, output_options)
    if output_options["format"] == "github" and isinstance(record, CheckRecord):
        write_step_summary(record)
