"""The first screen: what a newcomer needs, in 24 lines of 80 columns, and no number cut."""

from __future__ import annotations

import dataclasses
import re
from functools import partial
from pathlib import Path

import pytest

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.records import Metric, RunRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.reports import print_comparison, print_run, render
from moegeo_cli.reports.folding import fold_reason
from tests.reports.conftest import NASTY
from tests.reports.large_run import large_run
from tests.reports.test_formats import terminal

print_full = partial(print_run, full=True)
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e-?\d+)?(?![\w.])")


@pytest.fixture(scope="module")
def large() -> RunRecord:
    return large_run()


@pytest.mark.parametrize("width", [80, 100, 140, 200])
def test_one_screen_whatever_the_run(width: int, run: RunRecord, single: RunRecord) -> None:
    for record in (run, single, large_run()):
        lines = terminal(print_run, record, width).rstrip().splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= width


def test_it_says_the_verdict_why_and_what_to_do(run: RunRecord) -> None:
    text = terminal(print_run, run, 80)
    assert "FAILING" in text
    assert "Routing is failing." in text
    assert "A few experts do most of the work." in text
    assert "PARTIAL: 2 of 3 routers measured" in text
    assert "left out checkpoint-4000" in text
    assert re.search(
        r"^do +Activate the balance loss: output_router_logits: false → true", text, re.M
    )
    assert re.search(r"^check +After 200 steps collapse of layer 1 falls below 0.65", text, re.M)
    for label in ("loss", "collapse", "dead experts", "FSI"):
        assert re.search(rf"^{label} +\d", text, re.M), label


def test_a_large_run_is_told_without_an_ellipsis(large: RunRecord) -> None:
    for show in (print_run, print_full):
        for width in (80, 100, 120, 200):
            assert "…" not in terminal(show, large, width).replace("(…", "")


def test_narrow_tables_hold_the_numbers_of_wide_ones(large: RunRecord) -> None:
    wide = set(NUMBER.findall(terminal(print_full, large, 200)))
    narrow = terminal(print_full, large, 80)
    section = narrow[narrow.index("ROUTING PER ROUTER") : narrow.index("FISHER HETERO")]
    values = [n for n in NUMBER.findall(section) if "." in n]
    shown = {m.value for layer in large.newest.layers for m in layer.metrics.values()}
    assert len(values) > 60
    halves = {n for n in values if f"±{n}" in section}
    assert {n for n in values if n not in wide} <= halves
    assert "no room at 80 columns for: H" in narrow
    assert len(shown) > 100


def test_marks_of_findings_survive_a_narrow_terminal(large: RunRecord) -> None:
    assert re.search(r"^ +43 +! ", terminal(print_full, large, 80), re.M)


def test_dead_experts_that_are_not_proven_are_not_denied(large: RunRecord, run: RunRecord) -> None:
    assert "unknown; 701 of 6,144 look unused" in terminal(print_run, large, 80)
    first, *others = run.newest.layers
    load = (0.002, *[0.998 / (first.experts - 1)] * (first.experts - 1))
    shown = dataclasses.replace(first, load=load, dead=(), masked=(),
                                metrics={**first.metrics, "dead_experts": Metric(0.0)})  # fmt: skip
    newest = dataclasses.replace(run.newest, layers=(shown, *others))
    text = terminal(print_full, dataclasses.replace(run, checkpoints=(newest,)), 80)
    assert re.search(rf" 0/{first.experts} \+1\?  ", text)
    assert "dead: +n? are experts that look unused, but on too few tokens to decide" in text


def test_the_bundled_probe_is_not_taken_for_the_training_text(large: RunRecord) -> None:
    words = "bundled text, not yours: 8,184 tokens"
    assert words in terminal(print_run, large, 80)
    full = "probe bundled, not the training text: 8,184 tokens"
    assert full in terminal(print_full, large, 80)
    for format in ("markdown", "html"):
        assert full in render(large, format)
    own = dataclasses.replace(large, probe={**large.probe, "source": "mine.jsonl"})
    assert "probe: mine.jsonl, 8,184 tokens" in terminal(print_run, own, 80)
    assert "not the training text" not in render(own, "markdown")


def test_reasons_alike_are_told_once() -> None:
    few = "8,184 tokens cannot tell: about {} are needed"
    told = fold_reason("; ".join([few.format("31,640"), few.format("106,845"), "no loss"]))
    assert told == "8,184 tokens cannot tell: about 31,640 to 106,845 are needed; no loss"


def test_hostile_names_stay_text(run: RunRecord) -> None:
    for name in (NASTY, "x" * 500, "\x1b[2J" * 50, "日本語" * 60):
        named = dataclasses.replace(run, run={**run.run, "name": name})
        lines = terminal(print_run, named, 80).rstrip().splitlines()
        assert len(lines) <= 24
        assert not any("\x1b" in line for line in lines)


def test_a_reason_of_any_length_keeps_the_screen(run: RunRecord) -> None:
    gone = Metric(None, reason="no " * 400)
    newest = dataclasses.replace(run.newest, loss=gone, metrics={"dead_experts": gone})
    record = dataclasses.replace(run, checkpoints=(*run.checkpoints[:-1], newest))
    assert len(terminal(print_run, record, 80).rstrip().splitlines()) <= 24


def test_lines_of_a_comparison_stay_whole(comparison: ComparisonRecord) -> None:
    first = terminal(print_comparison, comparison, 80).splitlines()[3]
    assert first.split() == ["A", "healthy-run", "healthy", "healthy", "undetermined", "3"]


def test_every_finding_has_a_headline_for_one_line() -> None:
    for name, about in definitions().items():
        assert len(about.headline) <= 52, name
        assert about.headline.endswith("."), name


def test_the_docs_show_it(large: RunRecord) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "reports.md").read_text()
    shown = terminal(print_run, large, 80)
    assert shown in page
