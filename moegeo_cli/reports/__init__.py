"""One formatter per format: records in, text out (or onto a rich console)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moegeo_cli.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.records.comparison import ComparisonRecord
    from moegeo_cli.records.experts import ExpertsRecord
    from moegeo_cli.records.formats import AnyRecord
    from moegeo_cli.records.routing import RoutingRecord

__all__ = [
    "FORMATS", "print_check", "print_comparison", "print_record", "print_run", "read",
    "read_comparison", "render",
    "render_screen", "schema", "step_summary",
]  # fmt: skip

FORMATS = ("rich", "json", "markdown", "csv", "junit", "github", "html")


def render(record: AnyRecord, format: str) -> str:
    """A report as text; the format "rich" is the full terminal report.

    Raises:
        UsageError: a format that is not in `FORMATS`.
    """
    if format not in FORMATS:
        raise UsageError(f"no format {format!r}", found=", ".join(FORMATS))
    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.records.comparison import ComparisonRecord

    if format == "html":
        from moegeo_cli.reports.html import render as render_html

        return render_html(record)
    if isinstance(record, CheckRecord):
        return _render_check(record, format)
    if isinstance(record, RunRecord):
        return _render_run(record, format)
    if isinstance(record, ComparisonRecord):
        return _render_comparison(record, format)
    return _render_lens(record, format)


def _render_check(record: CheckRecord, format: str) -> str:
    from moegeo_cli.reports import check_report, csv_report, github, json_report, junit

    writers = {
        "rich": check_report.render, "json": json_report.render,
        "markdown": check_report.render_markdown, "csv": csv_report.render_check,
        "junit": junit.render_check, "github": github.render_check,
    }  # fmt: skip
    return writers[format](record)


def render_screen(record: RunRecord) -> str:
    """The first screen of a run's report as text."""
    from moegeo_cli.reports.first_screen import render as render_first

    return render_first(record)


def _render_run(record: RunRecord, format: str) -> str:
    from moegeo_cli.reports import csv_report, github, json_report, junit, markdown, terminal

    writers = {
        "rich": terminal.render, "json": json_report.render, "markdown": markdown.render,
        "csv": csv_report.render, "junit": junit.render, "github": github.render,
    }  # fmt: skip
    return writers[format](record)


def _render_lens(record: ExpertsRecord | RoutingRecord, format: str) -> str:
    from moegeo_cli.records.experts import ExpertsRecord
    from moegeo_cli.reports import experts_report, json_report, routing_report

    if format == "json":
        return json_report.render(record)
    if format not in ("rich", "markdown"):
        raise UsageError(f"a lens has no format {format!r}", found="rich, json, markdown, html")
    if isinstance(record, ExpertsRecord):
        plain, marked = experts_report.render, experts_report.render_markdown
        return plain(record) if format == "rich" else marked(record)
    if format == "rich":
        return routing_report.render(record)
    return routing_report.render_markdown(record)


def _render_comparison(record: ComparisonRecord, format: str) -> str:
    from moegeo_cli.reports import (
        comparison_terminal,
        comparison_text,
        csv_report,
        github,
        json_report,
        junit,
    )

    writers = {
        "rich": comparison_terminal.render, "json": json_report.render,
        "markdown": comparison_text.render_markdown, "csv": csv_report.render_comparison,
        "junit": junit.render_comparison, "github": github.render_comparison,
    }  # fmt: skip
    return writers[format](record)


def print_run(
    record: RunRecord, console: Console, path: str | None = None, *, full: bool = False
) -> None:
    """Print the terminal report of a run.

    Args:
        record: the run.
        console: where to.
        path: where it lies, for the commands at the end of the full report.
        full: every table; else one screen.
    """
    from moegeo_cli.reports.first_screen import print_first_screen
    from moegeo_cli.reports.terminal import print_run as print_full

    if full:
        print_full(record, console, path)
    else:
        print_first_screen(record, console)


def print_comparison(record: ComparisonRecord, console: Console) -> None:
    """Print the terminal report of a comparison."""
    from moegeo_cli.reports.comparison_terminal import print_comparison as show

    show(record, console)


def print_check(record: CheckRecord, console: Console, path: str | None = None) -> None:
    """Print the terminal report of a check; `path` is where the run lies."""
    from moegeo_cli.reports.check_report import print_check as show

    show(record, console, path)


def print_record(record: AnyRecord, console: Console) -> None:
    """Print the terminal report of any record, a run's in full."""
    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.records.comparison import ComparisonRecord
    from moegeo_cli.records.experts import ExpertsRecord
    from moegeo_cli.reports import experts_report, routing_report

    if isinstance(record, RunRecord):
        print_run(record, console, full=True)
    elif isinstance(record, CheckRecord):
        print_check(record, console)
    elif isinstance(record, ComparisonRecord):
        print_comparison(record, console)
    elif isinstance(record, ExpertsRecord):
        experts_report.print_experts(record, console)
    else:
        routing_report.print_routing(record, console)


def read(text: str | bytes) -> RunRecord:
    """A run from its JSON.

    Raises:
        FormatError: not JSON, not a run, of a newer version, or damaged.
    """
    from moegeo_cli.records import RunRecord
    from moegeo_cli.reports.json_report import read as load

    return load(text, RunRecord)


def read_comparison(text: str | bytes) -> ComparisonRecord:
    """A comparison from its JSON.

    Raises:
        FormatError: not JSON, not a comparison, of a newer version, or damaged.
    """
    from moegeo_cli.records.comparison import ComparisonRecord
    from moegeo_cli.reports.json_report import read as load

    return load(text, ComparisonRecord)


def schema(name: str = "moegeo.run", *, strict: bool = False) -> dict[str, Any]:
    """The JSON Schema of a format, "moegeo.run" for one; strict refuses keys not listed."""
    from moegeo_cli.records.schema import schema as derive

    return derive(name, strict=strict)


def step_summary(record: RunRecord | ComparisonRecord | CheckRecord) -> str:
    """Markdown for GitHub's step summary."""
    from moegeo_cli.reports.github import step_summary as summarise

    return summarise(record)
