"""Annotations for a GitHub workflow run, and markdown for its step summary."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.records import CheckpointRecord, Intervention, RunRecord, Verdict
from moegeo_cli.records.check import CheckedCheckpoint, CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.reports import (
    advice_text,
    check_report,
    comparison_text,
    judgement,
    markdown,
    outline,
)
from moegeo_cli.reports.escaping import clean, github_message, github_property

LEVELS = {"failing": "error", "watch": "warning", "info": "notice"}
SUMMARY_BYTES = 1_000_000  # GitHub refuses a step summary above 1 MiB
SUMMARY_ROUTERS = 10


def render(record: RunRecord) -> str:
    """One workflow command for the verdict and one per finding, worst first."""
    name, verdict = clean(record.run.get("name", "run"), 80), record.verdict
    if verdict is None:
        return _command("notice", f"moegeo {name}", ["measured, not judged"]) + "\n"
    return "\n".join(_verdict_commands(name, verdict, record.newest, record.interventions)) + "\n"


def render_check(record: CheckRecord) -> str:
    """One workflow command for the verdict of a check record and one per finding, worst first."""
    name, verdict = clean(record.run.get("name", "run"), 80), record.verdict
    if verdict is None:
        return _command("notice", f"moegeo check {name}", ["read, not judged"]) + "\n"
    return "\n".join(_verdict_commands(name, verdict, record.newest, record.interventions)) + "\n"


def _verdict_commands(
    name: str,
    verdict: Verdict,
    newest: CheckpointRecord | CheckedCheckpoint,
    interventions: Sequence[Intervention],
) -> list[str]:
    status = [f"{name} is {clean(verdict.status)} ({judgement.status_words(verdict)})"]
    level = {"failing": "error", "healthy": "notice"}.get(verdict.status, "warning")
    lines = [_command(level, "moegeo verdict", [*status, *verdict.reasons])]
    for finding in judgement.findings(verdict):
        where = f" in layer {judgement.layer_list(finding.layers)}" if finding.layers else ""
        title = f"{finding.id} {finding.name}{where}"
        words = [finding.message, *judgement.evidence_lines(finding.evidence)]
        lines.append(_command(LEVELS.get(finding.severity, "notice"), title, words))
    gaps = outline.coverage_gaps(newest)
    if gaps:
        lines.append(_command("warning", "moegeo coverage", gaps))
    for item in advice_text.to_do(interventions)[:3]:
        live = advice_text.live_words(item.key, lines=False)
        words = [advice_text.key_words(item.key) + (f" ({live})" if live else ""), item.action]
        lines.append(_command("notice", f"next: {item.title}", words))
    return lines


def render_comparison(record: ComparisonRecord) -> str:
    """One workflow command that says which run is healthier."""
    level = "notice" if record.healthier != "a" else "warning"
    words = [comparison_text.headline(record), record.reason, *record.notes]
    return _command(level, "moegeo compare", words) + "\n"


def step_summary(record: RunRecord | ComparisonRecord | CheckRecord) -> str:
    """Markdown for the file at $GITHUB_STEP_SUMMARY, within GitHub's size limit."""
    if isinstance(record, CheckRecord):
        text = check_report.render_markdown(record, layers=False)
    elif isinstance(record, ComparisonRecord):
        text = comparison_text.render_markdown(record, layers=False)
    else:
        text = markdown.render(record, most_routers=SUMMARY_ROUTERS, full=False)
    if len(text.encode()) > SUMMARY_BYTES:
        kept = text.encode()[:SUMMARY_BYTES].decode(errors="ignore").rpartition("\n")[0]
        text = kept + "\n\n(cut: the summary is longer than GitHub allows)\n"
    return text + "\n"


def _command(level: str, title: str, lines: list[str]) -> str:
    return f"::{level} title={github_property(title)}::{github_message(lines)}"
