"""`moegeo compare`: compare two runs at matched progress."""

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
from moegeo_cli.cli.options import with_options
from moegeo_cli.options import ReportOutput
from moegeo_cli.registry import find_command


@with_options(*find_command("compare").groups)
def compare(
    context: typer.Context,
    run_a: Annotated[Path, typer.Argument(help="A run, or one checkpoint.")],
    run_b: Annotated[Path, typer.Argument(help="The other run or checkpoint.")],
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Compare two runs at matched progress: how they differ, which is healthier, and why.

    [bold]moegeo compare runs/old runs/new[/bold]
    [bold]moegeo compare runs/old runs/new --by tokens --format json[/bold]
    """
    from moegeo_cli.commands.compare.api import compare as measure

    choose_format(output_options, ReportOutput)
    check_output(output_options["output"])
    with show_progress() as progress:
        record = measure(run_a, run_b, progress=progress, ranks=context.obj, **options)
    if write_report(record, output_options):
        return
    healthier = record.healthier.upper() if record.healthier else "no difference shown"
    say(f"healthier: {healthier}; {record.reason}")
