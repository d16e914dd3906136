"""Reports byte for byte against kept ones, and what no text from a checkpoint may do to them.

After a wanted change: `MOEGEO_GOLDEN=write pytest tests/reports`, and look at the diff.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Callable
from functools import partial
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from moegeo_cli.errors import UsageError
from moegeo_cli.records import RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.registry import formats
from moegeo_cli.reports import (
    print_comparison,
    print_run,
    render,
    step_summary,
)
from moegeo_cli.reports.frames import to_frames
from tests.reports.conftest import GOLDEN

print_full = partial(print_run, full=True)


def terminal(
    show: Callable[[Any, Console], None], record: Any, width: int, encoding: str = "utf-8"
) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(record, Console(file=file, width=width, color_system=None, force_terminal=False))
    file.flush()
    text = file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def golden(name: str, text: str) -> str:
    """What a report looked like when somebody last looked at it."""
    path = GOLDEN / name
    if os.environ.get("MOEGEO_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 140])
def test_terminal_reports(
    width: int, run: RunRecord, single: RunRecord, comparison: ComparisonRecord
) -> None:
    for name, record, show in (
        ("run", run, print_full), ("single", single, print_full),
        ("run-screen", run, print_run), ("single-screen", single, print_run),
        ("comparison", comparison, print_comparison),
    ):  # fmt: skip
        text = terminal(show, record, width)
        assert max(map(len, text.splitlines())) <= width
        assert text == golden(f"{name}-{width}.txt", text)


@pytest.mark.parametrize("format", ["markdown", "csv", "junit", "github", "json"])
def test_file_formats(format: str, run: RunRecord, comparison: ComparisonRecord) -> None:
    text = render(run, format)
    assert text == golden(f"run.{format}", text)
    text = render(comparison, format)
    assert text == golden(f"comparison.{format}", text)


def test_step_summaries(run: RunRecord, comparison: ComparisonRecord) -> None:
    text = step_summary(run)
    assert text == golden("run-summary.md", text)
    text = step_summary(comparison)
    assert text == golden("comparison-summary.md", text)


@pytest.mark.parametrize("format", [name for name, found in formats().items() if not found.needs])
def test_no_control_character_of_a_checkpoint_gets_out(
    format: str, run: RunRecord, comparison: ComparisonRecord
) -> None:
    assert "evil" in render(run, format)
    for record in (run, comparison):
        text = render(record, format)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)


def test_colour_and_markup_of_a_checkpoint_stay_text(run: RunRecord) -> None:
    file = io.StringIO()
    print_full(run, Console(file=file, width=100, force_terminal=True, color_system="truecolor"))
    print_run(run, Console(file=file, width=100, force_terminal=True, color_system="truecolor"))
    assert "[bold]x[/bold]" in file.getvalue()
    assert "\x1b]0;title" not in file.getvalue()
    assert ":smile:" in file.getvalue()


def test_without_unicode_the_report_is_ascii(run: RunRecord) -> None:
    for show in (print_run, print_full):
        text = terminal(show, run, 80, "ascii")
        assert text.isascii()
        assert "failing" in text


def test_what_matters_comes_first(run: RunRecord) -> None:
    lines = terminal(print_full, run, 80).splitlines()
    top = "\n".join(lines[:24])
    assert "2 of 3 routers" in top, "partial coverage is said first"
    assert "FAILING" in top.upper()
    assert "router-collapse" in "\n".join(lines[:40])
    assert "output_router_logits" in "\n".join(lines)


def test_github_commands_cannot_be_forged(run: RunRecord) -> None:
    for line in render(run, "github").splitlines():
        assert line.startswith(("::error ", "::warning ", "::notice "))
        assert line.count("\n") == 0


def test_csv_rows_are_whole_and_no_formula(run: RunRecord) -> None:
    rows = list(csv.DictReader(io.StringIO(render(run, "csv"))))
    assert {r["metric"] for r in rows} >= {"loss", "fsi", "collapse", "fhs"}
    for row in rows:
        assert None not in row
        assert not any(str(v).startswith(("=", "@")) for v in row.values())
        assert row["value"] or row["reason"]


def test_junit_counts_add_up(run: RunRecord) -> None:
    suite = ET.fromstring(render(run, "junit")).find("testsuite")
    assert suite is not None
    cases = suite.findall("testcase")
    assert int(suite.get("tests", 0)) == len(cases) > 5
    failed = [c.get("name") for c in cases if c.find("failure") is not None]
    assert failed == ["MG101 router-collapse"]
    skipped = {c.get("name") for c in cases if c.find("skipped") is not None}
    assert "coverage" in skipped


def test_frames_hold_every_row(run: RunRecord) -> None:
    frames = to_frames(run)
    layers = frames["layers"]
    own = layers[(layers.step == 3000) & (layers.layer == 1) & (layers.metric == "collapse")]
    assert own.value.tolist() == [0.81]
    assert own.ci_low.tolist() == [pytest.approx(0.7945)]
    experts = frames["experts"]
    assert len(experts) == 3 * 2 * 8
    assert experts.groupby(["step", "layer"]).load.sum().round(9).eq(1).all()
    missing = layers[layers.value.isna()]
    assert len(missing)
    assert missing.reason.notna().all()
    assert frames["findings"].name.tolist()[0] == "router-collapse"


def test_an_unknown_format_is_refused(run: RunRecord) -> None:
    with pytest.raises(UsageError, match="yaml"):
        render(run, "yaml")
