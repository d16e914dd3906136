"""Every fault planted in the trained samples is found by its name, and nothing else is."""

from __future__ import annotations

import pytest

from benchmarks.planted import CASES, Case, find
from moegeo_cli.commands.check.judging import FILE_RULES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.words)
def test_a_planted_fault_is_found(case: Case) -> None:
    assert {f.name for f in find(case)} == case.expected


def test_every_rule_has_a_case() -> None:
    assert set().union(*(case.expected for case in CASES)) == set(FILE_RULES)
