"""The report of a run as GitHub-flavoured markdown, for pull requests and step summaries."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.records import Finding, Intervention, LayerRecord, Metric, RunRecord
from moegeo_cli.reports import advice_text, figures, judgement, outline
from moegeo_cli.reports.charts import heat_strip, sparkline
from moegeo_cli.reports.escaping import clean_lines, markdown_code, markdown_text


class Notes:
    """Collects the reasons for missing values, numbered in the order of their first use."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cell(self, name: str, metric: Metric | None) -> str:
        """A value with its interval, or a dash with the number of its reason."""
        if metric is None:
            return ""
        if metric.value is None:
            reason = metric.reason or "no reason was recorded"
            if reason not in self.reasons:
                self.reasons.append(reason)
            return f"– ({self.reasons.index(reason) + 1})"
        places = figures.decimals(name)
        ends = figures.interval(metric, places)
        return figures.number(metric.value, places) + (f" {ends}" if ends else "")

    def lines(self) -> list[str]:
        """The reasons as a list under the tables."""
        found = [f"- – ({n}): {markdown_text(r)}" for n, r in enumerate(self.reasons, 1)]
        return ["", *found] if found else []


def render(record: RunRecord, *, most_routers: int | None = None, full: bool = True) -> str:
    """The run as a markdown document.

    Args:
        record: the run.
        most_routers: maximum rows of the router table; None for all.
        full: include interventions in full, and how it was measured.
    """
    notes = Notes()
    lines = [*_head(record), *_advice(record, full), *_findings(record), *_training(record, notes)]
    lines += _routers(record, notes, most_routers)
    lines += _dynamics(record, notes) if full else []
    lines += notes.lines()
    lines += _foot(record) if full else []
    return "\n".join(lines).rstrip() + "\n"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()
) -> list[str]:
    """A markdown table; `right` are the right-aligned columns."""
    rule = ["---:" if i in right else "---" for i in range(len(heads))]
    return ["| " + " | ".join(row) + " |" for row in (heads, rule, *rows)]


def _head(record: RunRecord) -> list[str]:
    verdict = record.verdict
    name = markdown_text(record.run.get("name", "run"))
    status = markdown_text(verdict.status) if verdict else "not judged"
    lines = [f"# moegeo: {name} is {status}" if verdict else f"# moegeo: {name}, not judged", ""]
    gaps = outline.coverage_gaps(record.newest)
    if gaps:
        lines += ["> [!WARNING]", f"> **Partial coverage.** {markdown_text(gaps[0])}"]
        lines += [f"> - {markdown_text(gap)}" for gap in gaps[1:]] + [""]
    lines += [f"**{judgement.status_words(verdict)}**", ""]
    lines.append(f"{markdown_text(outline.identity(record))}; {outline.checkpoint_words(record)}; "
                 f"probe {markdown_text(outline.probe_words(record.probe))}.")  # fmt: skip
    lines += [f"Left out: {markdown_text(s)}." for s in outline.skipped_checkpoints(record)]
    if verdict and verdict.reasons:
        lines += ["", *(f"- {markdown_text(r)}" for r in verdict.reasons)]
    checks = judgement.check_words(verdict)
    return [*lines, "", f"{checks}."] if checks else lines


def _advice(record: RunRecord, full: bool) -> list[str]:
    if not record.interventions:
        return []
    lines = ["", "## What to do next", ""]
    for place, item in enumerate(advice_text.to_do(record.interventions), 1):
        lines += intervention_lines(place, item, full)
    folded = advice_text.folded_words(record.interventions)
    return [*lines, "", markdown_text(folded)] if folded and full else lines


def intervention_lines(place: int, item: Intervention, full: bool = True) -> list[str]:
    """An entry of a numbered list of interventions: in full, or only its title and key."""
    key = item.key
    if key.key is None:
        change = f"no key in {markdown_text(key.framework)}"
    else:
        change = (
            f"{markdown_code(key.key)}: {markdown_code(advice_text.setting(key.current))} → "
            f"{markdown_code(advice_text.setting(key.suggested))}"
        )
    live = advice_text.live_words(key, lines=full)
    live = f"**{live}**" if key.live is False else markdown_text(live)
    lines = [f"{place}. **{markdown_text(item.title)}**: {change}" + (f" ({live})" if live else "")]
    if not full:
        return lines
    rows = [("", item.action), ("Note", key.note), ("Why", item.why), ("Check", item.check)]
    rows.append(("Evidence", advice_text.evidence_words(item.evidence)))
    rows.append(("Conflicts with", ", ".join(item.conflicts)))
    for name, words in rows:
        if words:
            lines.append(f"   - {name + ': ' if name else ''}{markdown_text(words)}")
    if key.lines:
        code = [line.replace("```", "'''") for line in clean_lines(key.lines)]
        lines += ["", "     ```python", *(f"     {line}" for line in code), "     ```", ""]
    return lines


def _findings(record: RunRecord) -> list[str]:
    lines = findings_table(judgement.findings(record.verdict))
    resolved = judgement.findings(record.verdict, state="resolved")
    if resolved:
        lines.append("")
    for finding in resolved:
        steps = ", ".join(f"{s:,}" for s in finding.steps)
        lines.append(f"Resolved: {_rule(finding)}, at step {steps}.")
    return lines


def findings_table(findings: Sequence[Finding]) -> list[str]:
    """A table of findings under its heading; nothing if there are none."""
    if not findings:
        return []
    heads = ("severity", "check", "layers", "what was seen", "numbers", "limit")
    return ["", "## Findings", "", *table(heads, [_finding(f) for f in findings])]


def _rule(finding: Finding) -> str:
    return f"{markdown_text(finding.id)} {markdown_text(finding.name)}"


def _finding(finding: Finding) -> list[str]:
    numbers = "<br>".join(
        markdown_text(line) for line in judgement.evidence_lines(finding.evidence)
    )
    return [
        f"**{finding.severity}**"
        if finding.severity == "failing"
        else markdown_text(finding.severity),
        _rule(finding),
        judgement.layer_list(finding.layers),
        markdown_text(finding.message),
        numbers,
        markdown_text(judgement.threshold_words(finding)),
    ]


def _training(record: RunRecord, notes: Notes) -> list[str]:
    found = outline.tracks(record)
    many = len(record.checkpoints) > 1
    lines = ["", "## Over training" if many else "## At a glance", ""]
    rows = []
    for track in found:
        name = markdown_text(figures.label(track.name))
        row = [f"**{name}**" if track.name in {"loss", "fsi", "fhs"} else name]
        row += [
            notes.cell(track.name, point)
            for point in (track.points[0], track.points[-1])[not many :]
        ]
        if many:
            row.append(sparkline([p.value if p else None for p in track.points], floor=track.noise))
        rows.append(row)
    first, last = record.checkpoints[0], record.checkpoints[-1]
    heads = [figures.step_name(c.step, "value") for c in (first, last)][not many :]
    return lines + table(
        ["metric", *heads, *(["trend"] if many else [])], rows, range(1, 1 + len(heads))
    )


def _routers(record: RunRecord, notes: Notes, most: int | None) -> list[str]:
    ranked = judgement.worst_routers(record.newest, record.verdict)
    if not ranked:
        return []
    lines = ["", f"## Routers, {figures.step_name(record.newest.step, 'newest')}, worst first", ""]
    heads = ("layer", "router", "FSI", "collapse", "dead", "FHS", "heterogeneity (trace)", "load")
    rows = []
    for layer, severity in ranked[:most]:
        mark = f" ({severity})" if severity in {"failing", "watch"} else ""
        cells = [notes.cell(n, layer.metrics.get(n)) for n in ("fsi", "collapse", "dead_experts")]
        cells += [notes.cell(n, layer.metrics.get(n)) for n in ("fhs", "heterogeneity_trace")]
        rows.append([f"{layer.layer}{mark}", markdown_code(layer.router), *cells, _load(layer)])
    lines += table(heads, rows, range(2, 7))
    if most is not None and len(ranked) > most:
        lines += ["", f"And {figures.plural(len(ranked) - most, 'more router')}."]
    return lines


def _load(layer: LayerRecord) -> str:
    if layer.state != "ok":
        return outline.STATES.get(layer.state, markdown_text(layer.state))
    return heat_strip(layer.load)[0] if layer.load is not None else ""


def _dynamics(record: RunRecord, notes: Notes) -> list[str]:
    headings, found = outline.dynamics_tracks(record)
    if not found:
        return []
    rows = [
        [markdown_text(figures.label(t.name)), *(notes.cell(t.name, p) for p in t.points)]
        for t in found
    ]
    heads = ["metric", *(markdown_text(h) for h in headings)]
    return ["", "## Between checkpoints", "", *table(heads, rows, range(1, len(heads)))]


def _foot(record: RunRecord) -> list[str]:
    lines = ["", "## How this was measured", ""]
    lines += [f"- {name}: {markdown_text(words)}" for name, words in outline.method(record)]
    lines += ["", "## Next", ""]
    return lines + [f"- {markdown_code(c)}: {why}" for c, why in outline.next_commands(record)]
