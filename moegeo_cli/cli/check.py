"""`moegeo check`: what the files of a checkpoint or a run tell by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import (
    check_output,
    say,
    settle_format,
    show_progress,
    write_report,
)
from moegeo_cli.cli.gates import gate, write_step_summary
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import ReportOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("check").groups)
def check(
    path: Annotated[
        Path, typer.Argument(help="One checkpoint, or a run: a folder of checkpoints.")
    ],
    options: dict[str, Any],
    judged: dict[str, Any],
    shown: dict[str, Any],
) -> int:
    """Check the files alone: frozen or lost weights, copies, biases. No model, no data, no GPU.

    [bold]moegeo check runs/my-moe[/bold]
    [bold]moegeo check runs/my-moe --quick --fail-on watch[/bold]
    """
    from moegeo_cli.commands.check.api import check as measure

    settle_format(shown, ReportOutput)
    check_output(shown["output"])
    with show_progress() as progress:
        record = measure(path, progress=progress, **options)
    if write_report(record, shown, str(path)):
        return gate(record.verdict, judged["fail_on"])
    if shown["format"] == "github":
        write_step_summary(record)
    if record.verdict is not None:
        say(f"verdict: {record.verdict.status}, by the files alone")
    return gate(record.verdict, judged["fail_on"])
