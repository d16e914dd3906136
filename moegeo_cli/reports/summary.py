"""The summary of a run, for all formats: the verdict in words, reasons, and five metrics."""

from __future__ import annotations

from dataclasses import dataclass

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.records import Finding, RunRecord, Verdict
from moegeo_cli.reports import figures, judgement, outline
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import Track

# Beginnings of reasons that the screen shows in other words.
_SHOWN_ELSEWHERE = ("no router is over a limit", "performance is undetermined")


@dataclass(frozen=True, slots=True)
class Number:
    """One of the five metrics: its values over the checkpoints, and the meaning of the newest."""

    track: Track
    meaning: str


def verdict_sentence(verdict: Verdict | None) -> str:
    """The status in one sentence."""
    if verdict is None:
        return "Measured, not judged."
    bad = [f for f in judgement.findings(verdict) if f.severity != "info"]
    many = f"{len(bad)} things deserve" if len(bad) > 1 else "One thing deserves"
    if verdict.status == "healthy":
        notes = len(judgement.findings(verdict))
        words = f"Nothing needs action; {figures.plural(notes, 'note')}."
        return words if notes else "No check found anything."
    if verdict.status == "inconclusive":
        return "What was measured does not allow a verdict."
    if verdict.status == "watch":
        return f"{many} a look." if bad else "Something deserves a look."
    failing = [
        name
        for name, word in (("Routing", verdict.routing), ("The loss", verdict.performance))
        if word == "failing"
    ]
    return f"{' and '.join(failing) or 'The run'} {'are' if len(failing) > 1 else 'is'} failing."


def axis_words(verdict: Verdict | None) -> str:
    """Both axes and the number of checks, in one line."""
    if verdict is None:
        return ""
    loss = clean(verdict.performance)
    words = [f"routing {clean(verdict.routing)}"]
    words.append("loss not judged" if loss == "undetermined" else f"loss {loss}")
    checks = verdict.checks
    if checks:
        skipped = sum(c.outcome == "skipped" for c in checks)
        words.append(f"{len(checks) - skipped} checks decided, {skipped} undecided")
    if verdict.policy != "calibrated":
        words.append(f"{clean(verdict.policy)} policy")
    return " · ".join(words)


def headline(finding: Finding) -> str:
    """A finding in one plain sentence."""
    known = definitions().get(finding.name)
    return clean(known.headline if known else finding.name.replace("-", " "))


def why(finding: Finding) -> str:
    """Why a finding matters; "" for an unknown finding."""
    known = definitions().get(finding.name)
    return known.why if known else ""


def main_findings(verdict: Verdict | None) -> tuple[list[Finding], list[Finding]]:
    """The active findings, worst first: those above info, and those at info (notes)."""
    active = judgement.findings(verdict)
    return (
        [f for f in active if f.severity != "info"],
        [f for f in active if f.severity == "info"],
    )


def further_reasons(verdict: Verdict | None) -> list[str]:
    """Reasons of the verdict that are not findings, such as changed limits or unread values."""
    if verdict is None:
        return []
    names = tuple(f"{f.name}: " for f in verdict.findings)
    return [
        clean(reason)
        for reason in verdict.reasons
        if not reason.startswith(names) and not reason.startswith(_SHOWN_ELSEWHERE)
    ]


def numbers(record: RunRecord) -> list[Number]:
    """The five metrics: loss, load (two), dead experts and FSI; missing ones are left out."""
    layers = record.newest.layers
    most = max((layer.choices for layer in layers), default=0)
    meanings = {
        "loss": "nats per token; lower is better",
        "collapse_worst": "worst layer; 0 even, 1 most uneven",
        "effective_experts_worst": f"of {figures.count(most)} in use in the worst layer",
        "dead_experts": dead_words(record),
        "fsi": "0 no preference, 1 sure of one",
    }
    found = []
    for track in outline.tracks(record, tuple(meanings)):
        newest = track.points[-1]
        words = meanings[track.name]
        if newest is not None and newest.value is None and track.name != "dead_experts":
            words = clean(newest.reason or "not measured")
        found.append(Number(track, words))
    return found


def dead_words(record: RunRecord) -> str:
    """How many experts are unused, and how many more look unused."""
    layers = record.newest.layers
    total = sum(layer.choices for layer in layers)
    metric = record.newest.metrics.get("dead_experts")
    maybe = sum(len(layer.suspects) for layer in layers)
    if metric is not None and metric.value is None:
        return f"unknown; {figures.count(maybe)} of {figures.count(total)} look unused"
    words = f"of {figures.count(total)}"
    return (
        f"{words}; {figures.count(maybe)} more look unused" if maybe else f"{words} on this probe"
    )
