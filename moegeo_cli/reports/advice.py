"""Prints findings and interventions on a terminal page, the same way in every report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from moegeo_cli.records import Finding, Intervention
from moegeo_cli.reports import advice_text, judgement
from moegeo_cli.reports.escaping import clean, clean_lines
from moegeo_cli.reports.page import STYLES, Page


def print_finding(page: Page, finding: Finding) -> None:
    """Print a finding with its evidence and its limit."""
    head = Text("  ").append(f"{finding.severity.upper():<8}", STYLES.get(finding.severity, "bold"))
    head.append(f"{clean(finding.id)} {clean(finding.name)}", "bold")
    if finding.layers:
        word = "layers" if len(finding.layers) > 1 else "layer"
        head.append(f"   {word} {judgement.layer_list(finding.layers)}", "dim")
    page.show(head)
    page.line(clean(finding.message), indent=10)
    for text in judgement.evidence_lines(finding.evidence):
        page.line(text, "dim", indent=10)
    limit = judgement.threshold_words(finding)
    if limit:
        page.line(limit, "dim", indent=10)


def print_interventions(page: Page, interventions: Sequence[Intervention]) -> None:
    """Print all interventions in full; nothing if there are none."""
    if interventions:
        page.section("INTERVENTIONS", "what to change, why, and how to see that it worked")
    for place, item in enumerate(advice_text.to_do(interventions), 1):
        page.show(page.paragraph(clean(item.title), "bold", sign=f"{place}.", indent=2))
        live = advice_text.live_words(item.key)
        rows = [
            ("do", clean(item.action)),
            ("key", "   ".join(w for w in (advice_text.key_words(item.key), live) if w)),
            ("note", clean(item.key.note or "")),
            ("why", clean(item.why)),
            ("check", clean(item.check)),
            ("evidence", advice_text.evidence_words(item.evidence)),
            ("not with", ", ".join(clean(c) for c in item.conflicts)),
        ]
        for name, words in rows:
            if words:
                page.show(page.paragraph(words, sign=f"{name:<9}", indent=5))
        for line in clean_lines(item.key.lines or ""):
            page.line(line, "cyan", indent=15)
    folded = advice_text.folded_words(interventions)
    if folded:
        page.show(page.paragraph(folded, "dim", indent=2))
