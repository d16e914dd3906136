"""`moegeo invariance`: which metrics stay the same under a change of basis."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import check_output, show_progress, stdout_console, write_document
from moegeo_cli.cli.options import with_options
from moegeo_cli.registry import find_command


@with_options(*find_command("invariance").groups)
def invariance(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run (its newest one is used).")],
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Rewrite the weights so that the outputs stay equal, and show which metrics change.

    [bold]moegeo invariance runs/my-moe/checkpoint-1000[/bold]
    """
    from moegeo_cli.commands.invariance.api import invariance as measure
    from moegeo_cli.reports.json_report import plain

    check_output(output_options["output"])
    with show_progress() as progress:
        found = measure(path, progress=progress, **options)
    if write_document("moegeo.invariance", plain(found), output_options):
        return
    from moegeo_cli.commands.invariance.report import print_invariance

    print_invariance(found, stdout_console())
