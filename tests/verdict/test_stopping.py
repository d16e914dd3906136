"""What stops a training by default."""

from __future__ import annotations

import dataclasses

import pytest

from moegeo_cli.records import Finding, Threshold, Verdict
from moegeo_cli.verdict.stopping import reason_to_stop

EXACT, RATED = Threshold(None, "exact"), Threshold(0.5, "evidence study", precision=0.95)
FINDING = Finding("MG000", "some", "failing", "routing", "words", threshold=EXACT)


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, True),
        ({"severity": "watch"}, False),
        ({"state": "resolved"}, False),
        ({"threshold": RATED}, False),
        ({"threshold": None}, False),
        ({"name": "loss-diverged", "threshold": RATED}, True),
        ({"name": "loss-diverged", "severity": "watch"}, False),
    ],
)
def test_exact_faults_and_divergence_alone(changes: dict[str, object], stops: bool) -> None:
    finding = dataclasses.replace(FINDING, **changes)  # type: ignore[arg-type]
    other = dataclasses.replace(FINDING, name="other", severity="watch")
    verdict = Verdict("failing", "failing", "healthy", "calibrated", (other, finding))
    assert reason_to_stop(verdict) == (finding if stops else None)
