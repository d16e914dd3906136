"""`moegeo check`: check a checkpoint or a run by its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from moegeo_cli.options import ReportOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("check").groups)
def check(
    path: Annotated[
        Path, typer.Argument(help="One checkpoint, or a run: a folder of checkpoints.")
    ],
    options: dict[str, Any],
    gate_options: dict[str, Any],
    output_options: dict[str, Any],
) -> int:
    """Check the files alone: frozen or lost weights, copies, biases. No model, no data, no GPU.

    [bold]moegeo check runs/my-moe[/bold]
    [bold]moegeo check runs/my-moe --quick --fail-on watch[/bold]
    """
    from moegeo_cli.commands.check.api import check as measure

    choose_format(output_options, ReportOutput)
    check_output(output_options["output"])
    with show_progress() as progress:
        record = measure(path, progress=progress, **options)
    if write_report(record, output_options, str(path)):
        return gate(record.verdict, gate_options["fail_on"])
    if output_options["format"] == "github":
        write_step_summary(record)
    if record.verdict is not None:
        say(f"verdict: {record.verdict.status}, by the files alone")
    return gate(record.verdict, gate_options["fail_on"])
