"""`moegeo inspect`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moegeo_cli.cli.console import stdout_console, write_payload
from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.options import (
    OUTPUT,
    ModelOption,
    OutputOption,
    RouterOption,
    ScoringOption,
    TopKOption,
)


class InspectFormat(StrEnum):
    """What stdout carries."""

    rich = "rich"
    json = "json"


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint or a run.")],
    model: ModelOption = None,
    router: RouterOption = None,
    top_k: TopKOption = None,
    scoring: ScoringOption = None,
    output_format: Annotated[
        InspectFormat,
        typer.Option("--format", "-f", help="What stdout carries.", rich_help_panel=OUTPUT),
    ] = InspectFormat.rich,
    output: OutputOption = None,
) -> None:
    """Say what a checkpoint is: layout, architecture, routers, completeness. Loads no model."""
    from moegeo_cli import api

    found = api.inspect(path, model=own_model(model), router=router, top_k=top_k, scoring=scoring)
    if output_format is InspectFormat.json or output is not None:
        document = {"format": {"name": "moegeo.inspect", "version": 1}, **found}
        write_payload(json.dumps(document, indent=2), output)
        return
    from moegeo_cli.reports.inspection import print_inspection

    print_inspection(found, stdout_console())
