"""The tables of words: each name, id and label leads to its own entry, as plain text."""

from __future__ import annotations

import re

import pytest

from moegeo_cli.errors import UsageError
from moegeo_cli.explanations.findings import definitions
from moegeo_cli.explanations.lookup import (
    GOOD,
    PAGES,
    SHORT,
    error_rows,
    explain_error,
    explain_finding,
    explain_metric,
    find,
    names,
)
from moegeo_cli.explanations.metrics import all_metrics, specs


def test_every_id_and_name_of_a_finding_leads_to_it() -> None:
    ids = [about.id for about in definitions().values()]
    assert len(set(ids)) == len(ids)
    for name, about in definitions().items():
        for asked in (about.id, about.id.lower(), name, f" {name} "):
            assert find(asked) == explain_finding(about), asked


def test_every_label_of_a_metric_leads_to_it() -> None:
    labels = [spec.label.lower() for spec in specs().values()]
    assert len(set(labels)) == len(labels)
    for name, spec in specs().items():
        for asked in (name, spec.label, spec.label.upper(), f"{spec.label}, worst router"):
            assert find(asked) == explain_metric(name), asked
    for short, name in SHORT.items():
        assert find(short) == explain_metric(name)


def test_every_code_of_an_error_leads_to_it() -> None:
    for code, row in error_rows().items():
        for asked in (code, code.lower(), code.removeprefix("MG-")):
            assert find(asked) == explain_error(code)
        assert dict(find(code).parts)["what to do"] == row["do"]


def test_names_lists_everything_once() -> None:
    found = names()
    assert [name.split()[0] for name in found["findings"]] == sorted(
        about.id for about in definitions().values()
    )
    assert found["metrics"] == sorted(all_metrics())
    assert found["errors"] == sorted(error_rows())


def test_a_finding_in_plain_text() -> None:
    about = definitions()["router-collapse"]
    told = explain_finding(about)
    assert told.title == "MG101 router-collapse"
    assert told.headline == about.headline
    parts = dict(told.parts)
    assert parts["why"] == about.why
    assert parts["holds when"] == "Few experts carry a router's load."  # without its link
    assert parts["severity"] == "failing at worst, about routing"
    assert parts["found by"] == "moegeo analyze"
    assert str(told).splitlines()[:3] == [told.title, told.headline, ""]


def test_a_metric_of_the_worst_router_says_so() -> None:
    plain, worst = explain_metric("fsi"), explain_metric("fsi_worst")
    assert (plain.name, worst.name) == ("fsi", "fsi_worst")
    assert plain.headline == worst.headline
    assert set(worst.parts) - set(plain.parts) == {
        ("worst", "the worst router's; the router is named beside it")
    }


def test_whether_higher_is_better_is_said_of_metrics_in_reports() -> None:
    for name, spec in all_metrics().items():
        parts = dict(explain_metric(name).parts)
        assert parts.get("good") == (GOOD[spec.higher_is_better] if spec.label else None), name
        assert parts["more"] == PAGES[spec.page]


def test_no_explanation_holds_markup() -> None:
    for kind in names().values():
        for name in kind:
            told = find(name.split(" ")[-1])
            for heading, text in told.parts:
                if heading in {"holds when", "computed as", "null beside it"}:
                    assert not re.search(r"\*\*|`|\]\(", text), (name, heading)


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(UsageError, match="called 'dead-expert'") as error:
        find("dead-expert")
    assert "dead-experts" in (error.value.found or "")
    with pytest.raises(UsageError) as error:
        find("zzzzzz")
    assert error.value.found is None
    assert error.value.hint == "moegeo explain lists all names"
