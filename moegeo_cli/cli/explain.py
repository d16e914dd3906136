"""`moegeo explain`: explain a name that a report prints."""

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
        typer.Argument(help="An id, a name or a label. Default: list all names."),
    ] = None,
    *,
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Explain a finding, a metric or an error: meaning, why it matters, what to do, known limits.

    [bold]moegeo explain MG101[/bold]
    [bold]moegeo explain "effective experts"[/bold]
    """
    from moegeo_cli.commands.explain.api import explain as look_up
    from moegeo_cli.explanations.lookup import names
    from moegeo_cli.reports.explaining import print_explanation, print_names

    if name is None:
        if not write_document("moegeo.names", names(), output_options):
            print_names(names(), stdout_console())
        return
    found = look_up(name, **options)
    document = {"name": found.name, "title": found.title, "headline": found.headline,
                "parts": dict(found.parts)}  # fmt: skip
    if not write_document("moegeo.explanation", document, output_options):
        print_explanation(found, stdout_console())
