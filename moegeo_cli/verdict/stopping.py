"""When to stop a training by default: on an exact fault or a diverged loss, and on nothing else."""

from __future__ import annotations

from moegeo_cli.records import Finding, Verdict

EXACT = "exact"  # the source of a limit that is none: the finding holds or it does not
DIVERGENCE = "loss-diverged"


def reason_to_stop(verdict: Verdict) -> Finding | None:
    """The first failing finding that is an exact fault or a divergence; None where none is."""
    for finding in verdict.findings:
        exact = finding.threshold is not None and finding.threshold.source == EXACT
        active = finding.state == "active" and finding.severity == "failing"
        if active and (exact or finding.name == DIVERGENCE):
            return finding
    return None
