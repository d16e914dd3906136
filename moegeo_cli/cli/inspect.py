"""`moegeo inspect`: what a checkpoint is, from its headers alone."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import stdout_console, write_payload
from moegeo_cli.cli.options import OUTPUT, OutputOption


class InspectFormat(StrEnum):
    """What stdout carries."""

    rich = "rich"
    json = "json"


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint or a run.")],
    output_format: Annotated[
        InspectFormat,
        typer.Option("--format", "-f", help="What stdout carries.", rich_help_panel=OUTPUT),
    ] = InspectFormat.rich,
    output: OutputOption = None,
) -> None:
    """Say what a checkpoint is: layout, architecture, routers, completeness. Loads no model."""
    from moegeo_cli import api

    found = api.inspect(path)
    if output_format is InspectFormat.json or output is not None:
        document = {"format": {"name": "moegeo.inspect", "version": 1}, **found}
        write_payload(json.dumps(document, indent=2), output)
        return
    print_inspection(found)


def print_inspection(found: dict[str, Any]) -> None:
    """A table of facts, then one of routers."""
    from rich.markup import escape
    from rich.table import Table

    console = stdout_console()
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for key, value in found.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            continue
        text = json.dumps(value) if isinstance(value, dict | list) else str(value)
        facts.add_row(key.replace("_", " "), escape(text if value is not None else "–"))
    console.print(facts)
    for key, value in found.items():
        if not (isinstance(value, list) and value and isinstance(value[0], dict)):
            continue
        table = Table(title=key.replace("_", " "), title_justify="left", box=None, pad_edge=False)
        columns = list(value[0])
        for column in columns:
            table.add_column(column.replace("_", " "), overflow="fold")
        for row in value:
            table.add_row(*(escape(str(row.get(c)) if row.get(c) is not None else "–")
                            for c in columns))  # fmt: skip
        console.print()
        console.print(table)
