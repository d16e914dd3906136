"""`moegeo report`: the last analysis once more, in any format, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.analyze import emit
from moegeo_cli.cli.console import check_output, settle_format, write_report
from moegeo_cli.cli.gates import write_step_summary
from moegeo_cli.cli.options import with_options
from moegeo_cli.errors import UsageError
from moegeo_cli.options import RunOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("report").groups)
def report(
    path: Annotated[
        Path,
        typer.Argument(help="A run or checkpoint that was analyzed; or JSON of any command."),
    ],
    options: dict[str, Any],
    shown: dict[str, Any],
) -> None:
    """Show the last analysis once more, in any format, without loading a model.

    [bold]moegeo report runs/my-moe -o run.html[/bold]
    [bold]moegeo report experts.json -o experts.html[/bold]
    """
    from moegeo_cli.commands.report.api import report as load
    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.sinks import open_places

    settle_format(shown, RunOutput)
    check_output(shown["output"])
    shown["log"] = open_places(shown["log"])
    record = load(path, **options)
    if isinstance(record, RunRecord):
        emit(record, path, **shown)
        return
    if shown["log"]:
        raise UsageError(
            "--log needs the JSON of `moegeo analyze`", found=f"{path}: of another command"
        )
    write_report(record, shown)
    if shown["format"] == "github" and isinstance(record, CheckRecord):
        write_step_summary(record)
