"""The terminal report of `moegeo invariance`."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from moegeo_cli.commands.invariance.record import InvarianceRecord, Rewriting
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import Page

SHORT = {
    "expert-permutation": "permute",
    "logit-constant": "shift",
    "residual-rotation": "rotate",
    "norm-rescale": "rescale",
}
MUST_HOLD = ("fsi", "collapse", "dispersion")
NO_CHANGE = 5e-7  # changes below this are rounding


def print_invariance(found: InvarianceRecord, console: Console) -> None:
    """Print a table of metrics by rewriting, then descriptions, then what was not applicable."""
    page = Page(console)
    page.line(f"moegeo invariance {clean(found.name)}", "bold")
    page.line(f"{clean(found.model_type)}, {found.probe['tokens']:,} probe tokens, float32")
    page.section("RELATIVE CHANGE", "of metrics when weights are rewritten with equal outputs")
    entries = found.invariance
    applied = [e for e in entries if e.applicable]
    if applied:
        _print_changes(page, applied)
        page.line()
    for entry in applied:
        name = SHORT.get(entry.name, entry.name)
        words = f"{name}: {entry.description}; the outputs moved by {_deviation(entry)}"
        page.show(page.paragraph(words, indent=2))
    for entry in entries:
        if not entry.applicable:
            words = f"{SHORT.get(entry.name, entry.name)}: not applicable: {entry.reason}"
            page.show(page.paragraph(clean(words), "dim", indent=2))
    page.line("* these metrics and the findings must not change; other metrics may")


def _deviation(entry: Rewriting) -> str:
    return "nothing" if not entry.logits_deviation else f"{entry.logits_deviation:.0e}"


def _print_changes(page: Page, applied: Sequence[Rewriting]) -> None:
    heads = [(SHORT.get(e.name, e.name), "right") for e in applied]
    table = page.table(("", "left"), ("unchanged", "right"), *heads)
    for name, first in applied[0].metrics.items():
        before = first.before
        cells = [_change(e.metrics[name].relative_change) for e in applied]
        table.add(
            page.text(figures.label(name) + (" *" if name in MUST_HOLD else "")),
            page.text("–" if before is None else figures.number(before)),
            *(page.text(c, "" if c in ("0", "–") else "yellow") for c in cells),
        )
    table.add_section()
    table.add(page.text("* and findings equal"), "", *("yes" if e.held else "NO" for e in applied))
    papers = [e.paper for e in applied if e.paper is not None]
    words = [str(word) for word in (papers[0].before, *(paper.after for paper in papers))]
    table.add(page.text("verdict, paper policy"), *words)
    page.show_table(table)


def _change(change: float | None) -> str:
    if change is None:
        return "–"
    if abs(change) < NO_CHANGE:
        return "0"
    return f"{change:+.1e}" if abs(change) < 1e-3 else f"{change:+.1%}"
