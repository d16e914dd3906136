"""A record in a notebook: its first screen in colours, as HTML without style sheet or script."""

from __future__ import annotations

import io

from rich.console import Console

from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.reports import print_record

WIDTH = 80
FRAME = (
    '<pre style="font-family: Menlo, DejaVu Sans Mono, Consolas, Courier New, monospace; '
    'line-height: 1.25; white-space: pre; overflow-x: auto">{code}</pre>'
)


def screen_html(record: AnyRecord) -> str:
    """The first screen as HTML. rich escapes every text."""
    console = Console(
        file=io.StringIO(), width=WIDTH, record=True, force_terminal=True,
        color_system="truecolor", force_jupyter=False,  # else rich displays each line separately
    )  # fmt: skip
    print_record(record, console)
    return console.export_html(inline_styles=True, code_format=FRAME)
