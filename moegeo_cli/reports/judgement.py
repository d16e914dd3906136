"""A verdict in words: its status, its findings with their evidence, and its worst routers."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.records import CheckpointRecord, Evidence, Finding, LayerRecord, Verdict
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean

SEVERITIES = ("failing", "watch", "info")


def findings(verdict: Verdict | None, *, state: str = "active") -> list[Finding]:
    """The findings with this state, worst first."""
    if verdict is None:
        return []
    chosen = [f for f in verdict.findings if f.state == state]
    return sorted(chosen, key=lambda f: (_rank(f.severity), f.id))


def worst_routers(
    checkpoint: CheckpointRecord, verdict: Verdict | None
) -> list[tuple[LayerRecord, str | None]]:
    """All routers, each with the worst severity of its findings: worst first, then by collapse."""
    worst: dict[int, str] = {}
    for finding in reversed(findings(verdict)):
        for layer in finding.layers:
            worst[layer] = finding.severity

    def key(layer: LayerRecord) -> tuple[int, int, float, int]:
        collapse = layer.metrics.get("collapse")
        value = collapse.value if collapse and collapse.value is not None else -1.0
        return (layer.state == "ok", _rank(worst.get(layer.layer)), -value, layer.layer)

    return [(layer, worst.get(layer.layer)) for layer in sorted(checkpoint.layers, key=key)]


def _rank(severity: str | None) -> int:
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def status_words(verdict: Verdict | None) -> str:
    """Both axes and the policy, in one line."""
    if verdict is None:
        return "not judged"
    return (
        f"routing {clean(verdict.routing)} · performance {clean(verdict.performance)} · "
        f"{clean(verdict.policy)} policy"
    )


def check_words(verdict: Verdict | None) -> str:
    """How many rules passed, found something, or were skipped; "" if the record does not say."""
    if verdict is None or not verdict.checks:
        return ""
    by = {o: sum(c.outcome == o for c in verdict.checks) for o in ("passed", "found", "skipped")}
    words = [
        f"{len(verdict.checks)} checks: {by['passed']} passed",
        f"{by['found']} found something",
    ]
    if by["skipped"]:
        words.append(f"{by['skipped']} could not be decided")
    return ", ".join(words)


def layer_list(layers: Sequence[int]) -> str:
    """Layer numbers, with consecutive ones joined: "0-3, 7"."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def evidence_lines(evidence: Sequence[Evidence], most: int = 4) -> list[str]:
    """The evidence of a finding, one line per number."""
    lines = []
    for item in evidence[:most]:
        places = figures.decimals(item.name)
        where = ""
        if item.layer is not None:
            where = f" (layer {figures.layer_name(item.layer, item.router or '')})"
        if item.metric.value is None:
            lines.append(f"{figures.label(item.name)}{where} – {clean(item.metric.reason or '')}")
            continue
        words = [figures.number(item.metric.value, places), figures.interval(item.metric, places)]
        words.append(figures.unit(item.name, item.metric))
        lines.append(f"{clean(figures.label(item.name))}{where} {' '.join(w for w in words if w)}")
    if len(evidence) > most:
        lines.append(f"and {len(evidence) - most} more")
    return lines


def threshold_words(finding: Finding) -> str:
    """The limit of a finding, with its source and measured rates; "" if it has none."""
    limit = finding.threshold
    if limit is None:
        return ""
    words = "limit" if limit.value is None else f"limit {figures.number(limit.value)}"
    rates = [
        f"{name} {figures.number(rate, 2)}"
        for name, rate in (
            ("precision", limit.precision),
            ("recall", limit.recall),
            ("false positives", limit.false_positive_rate),
        )
        if rate is not None
    ]
    return f"{words}: {clean(limit.source)}" + (f" ({', '.join(rates)})" if rates else "")
