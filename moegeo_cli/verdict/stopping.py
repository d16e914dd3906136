"""Decide whether a training should stop: only for an exact fault or a diverged loss."""

from __future__ import annotations

from moegeo_cli.records import Finding, Verdict

EXACT = "exact"  # the source of findings that compare with no limit
DIVERGENCE = "loss-diverged"


def reason_to_stop(verdict: Verdict) -> Finding | None:
    """The first active failing finding that is an exact fault or a divergence; None without one."""
    for finding in verdict.findings:
        exact = finding.threshold is not None and finding.threshold.source == EXACT
        active = finding.state == "active" and finding.severity == "failing"
        if active and (exact or finding.name == DIVERGENCE):
            return finding
    return None
