"""The parts that the reports of all lenses share: head, gaps, findings and checks."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console

from moegeo_cli.records.lenses import LensRecord
from moegeo_cli.reports.advice import print_finding
from moegeo_cli.reports.escaping import clean, markdown_text
from moegeo_cli.reports.markdown import findings_table, intervention_lines
from moegeo_cli.reports.page import Page

R = TypeVar("R", bound=LensRecord)


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a lens's report: command, model, facts, gaps, and rules tried."""

    command: str
    name: str
    facts: Sequence[str]
    gaps: Sequence[str]
    checks: Sequence[str]


def print_head(page: Page, head: Head, record: LensRecord) -> None:
    """Print the head of a report, with the findings."""
    page.line(clean(f"{head.command} {head.name}"), "bold")
    for line in head.facts:
        page.line(line, "dim")
    for line in head.gaps:
        page.line(line, "bold red")
    if record.findings:
        page.section("FINDINGS")
    for finding in record.findings:
        print_finding(page, finding)
    for line in head.checks:
        page.line(line, "dim")


def render_plain(record: R, show: Callable[[R, Console], None], width: int) -> str:
    """A terminal report as plain text, for files.

    Args:
        record: the result of the lens.
        show: prints it on a console.
        width: width of the text, in characters.
    """
    file = io.StringIO()
    show(
        record,
        Console(
            file=file, force_jupyter=False, width=width, color_system=None, force_terminal=False
        ),
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def markdown_head(head: Head, record: LensRecord) -> list[str]:
    """The head of a report as GitHub-flavoured markdown, with the findings."""
    gaps = [f"> **{markdown_text(line)}**" for line in head.gaps]
    return [
        f"# {head.command}: {markdown_text(head.name)}",
        "",
        *gaps,
        *([""] if gaps else []),
        *(f"{markdown_text(line)}  " for line in (*head.facts, *head.checks)),
        *findings_table(record.findings),
    ]


def markdown_actions(record: LensRecord) -> list[str]:
    """The interventions as markdown."""
    lines = ["", "## What to do", ""] if record.interventions else []
    for place, item in enumerate(record.interventions, 1):
        lines += intervention_lines(place, item)
    return lines
