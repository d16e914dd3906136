"""`moegeo routing`: what routing reflects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import show_progress
from moegeo_cli.cli.lens import check_places, emit_lens
from moegeo_cli.cli.options import with_options
from moegeo_cli.commands.registry import find_command


@with_options(*find_command("routing").groups)
def routing(
    path: Annotated[
        Path,
        typer.Argument(help="A checkpoint; or a run: its newest one, and how it came there."),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(help="Another model's checkpoint or run, on the same tokens."),
    ] = None,
    *,
    options: dict[str, Any],
    shown: dict[str, Any],
) -> None:
    """What does routing reflect: hidden geometry, a shared direction, domains, depth, the prompt?

    [bold]moegeo routing runs/my-moe[/bold]
    [bold]moegeo routing runs/my-moe/checkpoint-1000 --generate 32 --format json[/bold]
    [bold]moegeo routing runs/base runs/tuned[/bold]
    """
    check_places(shown)
    from moegeo_cli.commands.routing.api import routing as measure

    with show_progress() as progress:
        record = measure(path, other, progress=progress, **options)
    from moegeo_cli.reports import routing_report as report

    emit_lens(record, shown, report.print_routing)
