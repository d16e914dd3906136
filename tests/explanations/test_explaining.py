"""Every id that a report can print has an explanation, and the docs hold the same words."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from moegeo_cli import errors
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.commands.explain.api import explain
from moegeo_cli.commands.routing.record import UNITS
from moegeo_cli.explanations.lookup import PAGES, error_rows, names
from moegeo_cli.explanations.metrics import all_metrics, specs
from moegeo_cli.records import RunRecord
from tests.explain_page import pages
from tests.reports.html.pages import recorded
from tests.reports.large_run import large_run

ROOT = Path(__file__).parents[2]


def test_every_finding_metric_and_error_is_explained() -> None:
    for kind in names().values():
        for name in kind:
            told = explain(name.split(" ")[-1])
            assert told.headline.endswith(".")
            assert all(text and "](" not in text for _, text in told.parts), name
    assert set(specs()) | set(UNITS) <= set(all_metrics())
    codes = {k.code for _, k in inspect.getmembers(errors, inspect.isclass) if hasattr(k, "code")}
    assert codes == set(error_rows())


def test_every_metric_of_a_record_is_explained() -> None:
    run, experts, check = large_run(), recorded("experts"), recorded("check")
    assert isinstance(run, RunRecord)
    assert isinstance(experts, ExpertsRecord)
    seen = set(run.newest.metrics) | set(run.newest.layers[0].metrics)
    seen |= {n for move in run.dynamics for n in move["metrics"]}
    for layer in (*experts.layers, *check.newest.layers):  # type: ignore[union-attr]
        seen |= set(layer.metrics)
    for name in seen:
        assert explain(name).name == name


@pytest.mark.parametrize(
    ("asked", "name"),
    [("MG101", "router-collapse"), ("mg401", "balancing-inactive"), ("near-ties", "near-ties"),
     ("near_ties", "near_ties"), ("effective experts", "effective_experts"),
     ("FSI (dispatch)", "fsi_dispatch"), ("H trace", "heterogeneity_trace"),
     ("collapse, worst router", "collapse"), ("collapse_worst", "collapse_worst"),
     ("MG-E011", "MG-E011"), ("e011", "MG-E011"), ("mantel", "mantel")],
)  # fmt: skip
def test_a_name_is_found_as_a_report_prints_it(asked: str, name: str) -> None:
    assert explain(asked).name == name


def test_the_docs_are_what_is_explained() -> None:
    for path, text in pages().items():
        assert path.read_text("utf-8") == text, f"python -m tests.explain_page ({path.name})"


def test_tables_of_metrics_hold_the_same_words() -> None:
    texts = {page: (ROOT / place).read_text("utf-8") for page, place in PAGES.items()}
    rows = {page: re.findall(r"^\| `.*$", text, re.MULTILINE) for page, text in texts.items()}
    for name, spec in all_metrics().items():
        if not spec.definition or name == "asymmetry":
            continue
        own = [r for r in rows[spec.page] if f"`{name}`" in r]
        assert any(spec.definition in r for r in own), f"{name}: see explanations/metrics.toml"


def test_what_a_metric_means_stands_by_itself() -> None:
    """A cell of a table may lean on the row before it; `moegeo explain` prints one alone."""
    leaning = ("the same", "its ", "of ", "against ", "within ", "over ", "likewise")
    for name, spec in all_metrics().items():
        headline = (spec.meaning or spec.definition).lower()
        assert headline, name
        assert not headline.startswith(leaning), f"{name}: {headline}"
