"""The report of `moegeo routing`: on a terminal, as plain text and as markdown."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from moegeo_cli.commands.routing import outline
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.commands.routing.tables import Cell, Table, left_out, tables
from moegeo_cli.reports.advice import print_interventions
from moegeo_cli.reports.escaping import markdown_code, markdown_text
from moegeo_cli.reports.lens_report import (
    Head,
    markdown_actions,
    markdown_head,
    print_head,
    render_plain,
)
from moegeo_cli.reports.markdown import Notes
from moegeo_cli.reports.markdown import table as markdown_table
from moegeo_cli.reports.page import Page

TEXT_WIDTH, WIDE = 150, 140  # at width WIDE or more, intervals are shown beside null values


def print_record(record: RoutingRecord, console: Console) -> None:
    """Print the report.

    Args:
        record: the result of the command.
        console: the console to print on.
    """
    page = Page(console)
    print_head(page, _head(record), record)
    page.section("AT A GLANCE", "means over layers")
    for line in outline.sentences(record):
        page.show(page.paragraph(line, indent=2))
    for table in tables(record):
        _print_table(page, table)
    if left_out(record):
        page.line()
        page.line(left_out(record), "dim")
    print_interventions(page, record.interventions)
    page.footnotes()


def _print_table(page: Page, table: Table) -> None:
    wide = page.width >= WIDE
    page.section(table.title, table.explanation + (", 95%" if wide else ""))
    first, *heads = table.heads
    shown = page.table((first, "left"), *((head, "right") for head in heads))
    for name, cells in table.rows:
        shown.add(page.text(name), *(_cell(page, cell, wide=wide) for cell in cells))
    page.show_table(shown)
    for words in table.notes:
        page.line(words, "dim")


def _cell(page: Page, cell: Cell, *, wide: bool) -> Text:
    # If there is no room for both, the null value is more useful than the interval.
    show = page.estimate if wide and not cell.name.endswith("p_value") else page.value
    return show(cell.name, cell.metric).append(_null(cell), "dim")


def _null(cell: Cell) -> str:
    metric = cell.metric
    if not cell.null or metric is None or metric.value is None or metric.null_value is None:
        return ""
    return f" ({metric.null_value:.2f})"


def _head(record: RoutingRecord) -> Head:
    return Head(
        "moegeo routing",
        record.name,
        outline.head_lines(record),
        outline.gaps(record),
        outline.checks(record),
    )


def render(record: RoutingRecord) -> str:
    """The terminal report as plain text, for files."""
    return render_plain(record, print_record, TEXT_WIDTH)


def render_markdown(record: RoutingRecord) -> str:
    """The report as GitHub-flavoured markdown."""
    notes = Notes()
    lines = markdown_head(_head(record), record)
    lines += ["", *(f"- {markdown_text(line)}" for line in outline.sentences(record))]
    for table in tables(record):
        rows = [
            [markdown_text(name), *(notes.cell(c.name, c.metric) + _null(c) for c in cells)]
            for name, cells in table.rows
        ]
        lines += ["", f"## {markdown_text(table.title.capitalize())}", ""]
        lines += [markdown_text(table.explanation), ""]
        heads = [markdown_text(head) for head in table.heads]
        lines += markdown_table(heads, rows, range(1, len(heads)))
        lines += ["", *(f"- {markdown_text(words)}" for words in table.notes)]
    if left_out(record):
        lines += ["", markdown_text(left_out(record))]
    lines += markdown_actions(record)
    lines += notes.lines()
    lines += ["", f"Settings: {markdown_code(outline.settings_words(record))}"]
    return "\n".join(lines).rstrip() + "\n"
