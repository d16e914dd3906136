"""`moegeo explain`: an explanation with limits and interventions, a list of names, and JSON."""

from __future__ import annotations

import pytest

from moegeo_cli.commands.explain.api import explain
from moegeo_cli.errors import UsageError
from moegeo_cli.explanations.findings import definitions
from tests.command import call


def test_a_finding_has_its_limit_and_what_to_do() -> None:
    parts = dict(explain("MG101").parts)
    assert "Raise the balance loss" in parts["what to do"]
    assert "router-collapse" in parts["limit"]
    for about in definitions().values():
        assert "why" in dict(explain(about.id).parts), about.id


def test_a_slip_is_answered_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="did you mean"):
        explain("router-colapse")
    refused = call(capsys, "explain", "nonsense")
    assert refused.code == 2
    assert "no finding, metric or error is called 'nonsense'" in refused.err
    assert "hint: moegeo explain lists all names" in refused.err
    listed = call(capsys, "explain").out
    assert all(d.id in listed for d in definitions().values())
    document = call(capsys, "explain", "fsi", "-f", "json").document
    assert document["parts"]["range"] == "0 … 1"


def test_a_metric_is_printed_with_its_title_and_its_range(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed = call(capsys, "explain", "FSI")
    assert printed.code == 0
    assert printed.out.startswith("FSI (fsi)")
    assert "0 … 1" in printed.out
    assert "limit" not in dict(explain("fsi").parts), "a metric has none of its own"
