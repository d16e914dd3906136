"""`moegeo inspect`: describe a checkpoint from its headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import stdout_console, write_document
from moegeo_cli.cli.options import with_options
from moegeo_cli.registry import find_command


@with_options(*find_command("inspect").groups)
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint or a run.")],
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Describe a checkpoint: layout, architecture, routers, completeness. Loads no model."""
    from moegeo_cli.commands.inspect.api import inspect as measure
    from moegeo_cli.reports.json_report import plain

    found = measure(path, **options)
    if write_document("moegeo.inspect", plain(found), output_options):
        return
    from moegeo_cli.commands.inspect.report import print_inspection

    print_inspection(found, stdout_console())
