"""`moegeo experts`: how alike experts are, by what they do and by what they see."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import show_progress
from moegeo_cli.cli.lens import check_places, emit_lens
from moegeo_cli.cli.options import with_options
from moegeo_cli.commands.registry import find_command


@with_options(*find_command("experts").groups)
def experts(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: then its newest one.")],
    options: dict[str, Any],
    shown: dict[str, Any],
) -> None:
    """How alike are the experts, in what they do and in what they see; which to merge or prune.

    [bold]moegeo experts runs/my-moe/checkpoint-1000[/bold]
    [bold]moegeo experts runs/my-moe --verify 4 --matrices pairs.safetensors[/bold]
    """
    check_places(shown)
    from moegeo_cli.commands.experts.api import experts as measure

    with show_progress() as progress:
        record = measure(path, progress=progress, **options)
    from moegeo_cli.reports import experts_report as report

    emit_lens(record, shown, report.print_experts)
