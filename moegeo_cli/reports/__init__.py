"""Turns records into text, or prints them on a rich console; `formats/` lists the formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moegeo_cli.errors import UsageError
from moegeo_cli.registry import command_of, load, writer
from moegeo_cli.registry import formats as known_formats

if TYPE_CHECKING:
    from rich.console import Console

    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.records.comparison import ComparisonRecord
    from moegeo_cli.records.formats import AnyRecord

__all__ = [
    "print_check", "print_comparison", "print_record", "print_run", "read", "read_comparison",
    "render", "render_screen", "schema", "step_summary",
]  # fmt: skip


def render(record: AnyRecord, format: str) -> Any:
    """A report in a format.

    Args:
        record: the record.
        format: name of the format; "rich" is the full terminal report.

    Returns:
        Text; bytes for Parquet.

    Raises:
        UsageError: there is no such format, or it cannot hold this kind of record.
    """
    if format not in known_formats():
        raise UsageError(f"no format {format!r}", found=", ".join(known_formats()))
    write = writer(type(record), format)
    if write is None:
        name = command_of(type(record)).name
        known = ", ".join(known for known in known_formats() if writer(type(record), known))
        raise UsageError(f"`moegeo {name}` has no format {format!r}", found=known)
    return write(record)


def render_screen(record: AnyRecord) -> str:
    """The first screen of a report as text; the full report if the command has no screen."""
    from moegeo_cli.reports.screen import render_screen as render_first

    if not command_of(type(record)).screen:
        return str(render(record, "rich"))
    return render_first(record, print_record)


def print_run(
    record: RunRecord, console: Console, path: str | None = None, *, full: bool = False
) -> None:
    """Print the terminal report of a run.

    Args:
        record: the run.
        console: the console to print on.
        path: the run's path, for the commands at the end of the full report.
        full: print every table; else one screen.
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
    """Print the terminal report of a check; `path` is the run's path."""
    from moegeo_cli.reports.check_report import print_check as show

    show(record, console, path)


def print_record(
    record: AnyRecord, console: Console, path: str | None = None, *, full: bool = False
) -> None:
    """Print the terminal report of any record.

    Args:
        record: the result of a command.
        console: the console to print on.
        path: the run's path, for the commands at the end of a full report.
        full: print every table; else one screen, if the command has one.
    """
    from moegeo_cli.records import RunRecord
    from moegeo_cli.records.check import CheckRecord
    from moegeo_cli.records.comparison import ComparisonRecord

    command = command_of(type(record))
    if command.screen and not full:
        from moegeo_cli.reports.screen import print_screen

        print_screen(console, record, load(command.screen))
    elif isinstance(record, RunRecord):
        print_run(record, console, path, full=True)
    elif isinstance(record, CheckRecord):
        print_check(record, console, path)
    elif isinstance(record, ComparisonRecord):
        print_comparison(record, console)
    else:
        lens = command.lens
        load(command.printer if lens is None else f"{lens.report}:print_record")(record, console)


def read(text: str | bytes) -> RunRecord:
    """Read a run from its JSON.

    Raises:
        FormatError: not JSON, not a run, a newer version, or damaged.
    """
    from moegeo_cli.records import RunRecord
    from moegeo_cli.reports.json_report import read as load

    return load(text, RunRecord)


def read_comparison(text: str | bytes) -> ComparisonRecord:
    """Read a comparison from its JSON.

    Raises:
        FormatError: not JSON, not a comparison, a newer version, or damaged.
    """
    from moegeo_cli.records.comparison import ComparisonRecord
    from moegeo_cli.reports.json_report import read as load

    return load(text, ComparisonRecord)


def schema(name: str = "moegeo.run", *, strict: bool = False) -> dict[str, Any]:
    """The JSON Schema of a format such as "moegeo.run". A strict schema refuses unknown keys."""
    from moegeo_cli.records.schema import schema as derive

    return derive(name, strict=strict)


def step_summary(record: RunRecord | ComparisonRecord | CheckRecord) -> str:
    """Markdown for GitHub's step summary."""
    from moegeo_cli.reports.github import step_summary as summarise

    return summarise(record)
