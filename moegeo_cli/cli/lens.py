"""What `moegeo experts` and `moegeo routing` share: where their report and matrices go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from moegeo_cli.cli.console import check_output, settle_format, stdout_console, write_payload
from moegeo_cli.options import LensOutput


def check_places(shown: dict[str, Any]) -> None:
    """Refuse files that cannot be written, before hours of work.

    Raises:
        UsageError: one of them.
    """
    from moegeo_cli.reports.matrices import check_name

    settle_format(shown, LensOutput)
    if shown["matrices"] is not None:
        check_name(shown["matrices"])
    check_output(shown["matrices"])
    check_output(shown["output"])


def emit_lens(record: Any, shown: dict[str, Any], print_record: Callable[..., None]) -> None:
    """The report of a lens, in the format asked for, and its matrices.

    Args:
        record: what the lens found.
        shown: options of the output.
        print_record: prints it on a console.
    """
    from moegeo_cli.reports import render
    from moegeo_cli.reports.matrices import matrices_file

    if shown["matrices"] is not None:
        write_payload(matrices_file(record, shown["matrices"]), shown["matrices"])
    if shown["format"] == "rich" and shown["output"] is None:
        print_record(record, stdout_console())
        return
    write_payload(render(record, shown["format"]), shown["output"])
