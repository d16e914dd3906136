"""Reports a verdict to a shell and to GitHub: exit codes, and the step summary."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from moegeo_cli.errors import OutputError

if TYPE_CHECKING:
    from moegeo_cli.records import RunRecord, Verdict
    from moegeo_cli.records.check import CheckRecord

SEVERITY = {"healthy": 0, "watch": 1, "failing": 2}
GATE = {"watch": 1, "failing": 2}
EXIT_GATE, EXIT_INCONCLUSIVE = 1, 3


def gate(verdict: Verdict | None, fail_on: str) -> int:
    """The exit code of a verdict.

    Args:
        verdict: the verdict; None if the command has none.
        fail_on: "watch", "failing" or "never".

    Returns:
        1 if the verdict is at `fail_on` or worse, 3 if it is inconclusive, else 0; always 0 for
        "never".
    """
    if fail_on == "never" or verdict is None:
        return 0
    if verdict.status not in SEVERITY:
        return EXIT_INCONCLUSIVE
    return EXIT_GATE if SEVERITY[verdict.status] >= GATE[fail_on] else 0


def write_step_summary(record: RunRecord | CheckRecord) -> None:
    """Append the report to GitHub's step summary, if GITHUB_STEP_SUMMARY is set.

    Raises:
        OutputError: it cannot be written.
    """
    from moegeo_cli.reports import step_summary

    place = os.environ.get("GITHUB_STEP_SUMMARY")
    if not place:
        return
    try:
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(step_summary(record))
    except OSError as error:
        raise OutputError("the step summary cannot be written", found=str(error)) from error
