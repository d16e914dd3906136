"""The report of `moegeo routing`: on a terminal, as plain text and as markdown."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from moegeo_cli.commands.routing import outline
from moegeo_cli.commands.routing.outline import Cell, Table
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.reports.advice import print_finding, print_interventions
from moegeo_cli.reports.escaping import clean, markdown_code, markdown_text
from moegeo_cli.reports.markdown import Notes, findings_table, intervention_lines
from moegeo_cli.reports.markdown import table as markdown_table
from moegeo_cli.reports.page import Page

TEXT_WIDTH, ROOMY = 150, 140  # from the latter on there is room for intervals beside the nulls


def print_record(record: RoutingRecord, console: Console) -> None:
    """Print the report.

    Args:
        record: what was found.
        console: where to.
    """
    page = Page(console)
    page.line(f"moegeo routing {clean(record.name)}", "bold")
    for line in outline.head_lines(record):
        page.line(line, "dim")
    for line in outline.gaps(record):
        page.line(line, "bold red")
    if record.findings:
        page.section("FINDINGS")
    for finding in record.findings:
        print_finding(page, finding)
    for line in outline.checks(record):
        page.line(line, "dim")
    page.section("AT A GLANCE", "means over layers")
    for line in outline.sentences(record):
        page.show(page.paragraph(line, indent=2))
    for table in outline.tables(record):
        _print_table(page, table)
    if outline.left_out(record):
        page.line()
        page.line(outline.left_out(record), "dim")
    print_interventions(page, record.interventions)
    page.footnotes()


def _print_table(page: Page, table: Table) -> None:
    roomy = page.width >= ROOMY
    page.section(table.title, table.explanation + (", 95%" if roomy else ""))
    first, *heads = table.heads
    shown = page.table((first, "left"), *((head, "right") for head in heads))
    for name, cells in table.rows:
        shown.add(page.text(name), *(_cell(page, cell, roomy=roomy) for cell in cells))
    page.show_table(shown)
    for words in table.notes:
        page.line(words, "dim")


def _cell(page: Page, cell: Cell, *, roomy: bool) -> Text:
    # Where there is no room for intervals the null matters more than a half width.
    show = page.estimate if roomy and not cell.name.endswith("p_value") else page.value
    return show(cell.name, cell.metric).append(_null(cell), "dim")


def _null(cell: Cell) -> str:
    metric = cell.metric
    if not cell.null or metric is None or metric.value is None or metric.null_value is None:
        return ""
    return f" ({metric.null_value:.2f})"


def render(record: RoutingRecord) -> str:
    """The terminal report as plain text, for files."""
    file = io.StringIO()
    print_record(
        record, Console(file=file, width=TEXT_WIDTH, color_system=None, force_terminal=False)
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def render_markdown(record: RoutingRecord) -> str:
    """The report as GitHub-flavoured markdown."""
    notes = Notes()
    lines = [f"# moegeo routing: {markdown_text(record.name)}", ""]
    missing = [markdown_text(line) for line in outline.gaps(record)]
    lines += [f"> **{gap}**" for gap in missing] + ([""] if missing else [])
    head = (*outline.head_lines(record), *outline.checks(record))
    lines += [f"{markdown_text(line)}  " for line in head]
    lines += findings_table(record.findings)
    lines += ["", *(f"- {markdown_text(line)}" for line in outline.sentences(record))]
    for table in outline.tables(record):
        rows = [
            [markdown_text(name), *(notes.cell(c.name, c.metric) + _null(c) for c in cells)]
            for name, cells in table.rows
        ]
        lines += ["", f"## {markdown_text(table.title.capitalize())}", ""]
        lines += [markdown_text(table.explanation), ""]
        heads = [markdown_text(head) for head in table.heads]
        lines += markdown_table(heads, rows, range(1, len(heads)))
        lines += ["", *(f"- {markdown_text(words)}" for words in table.notes)]
    if outline.left_out(record):
        lines += ["", markdown_text(outline.left_out(record))]
    if record.interventions:
        lines += ["", "## What to do", ""]
    for place, item in enumerate(record.interventions, 1):
        lines += intervention_lines(place, item)
    lines += notes.lines()
    lines += ["", f"Settings: {markdown_code(outline.settings_words(record))}"]
    return "\n".join(lines).rstrip() + "\n"
