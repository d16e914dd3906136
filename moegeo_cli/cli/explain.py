"""`moegeo explain`: what a name in a report means."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moegeo_cli.cli.console import stdout_console, write_document
from moegeo_cli.cli.options import with_options
from moegeo_cli.registry import find_command


@with_options(*find_command("explain").groups)
def explain(
    name: Annotated[
        str | None,
        typer.Argument(help="An id, a name or a label. Without one all names are listed."),
    ] = None,
    *,
    options: dict[str, Any],
    shown: dict[str, Any],
) -> None:
    """Say what a finding, a metric or an error means: why it matters, what to do, known limits.

    [bold]moegeo explain MG101[/bold]
    [bold]moegeo explain "effective experts"[/bold]
    """
    from moegeo_cli.commands.explain.api import explain as look_up
    from moegeo_cli.explanations.lookup import names
    from moegeo_cli.reports.explaining import print_explanation, print_names

    if name is None:
        if not write_document("moegeo.names", names(), shown):
            print_names(names(), stdout_console())
        return
    found = look_up(name, **options)
    document = {"name": found.name, "title": found.title, "headline": found.headline,
                "parts": dict(found.parts)}  # fmt: skip
    if not write_document("moegeo.explanation", document, shown):
        print_explanation(found, stdout_console())
