"""The terminal report of a comparison of two runs."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from moegeo_cli.records.comparison import ComparisonRecord, Difference, LayerPair, MatchedPair
from moegeo_cli.reports import figures
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.comparison_text import (
    favoured,
    headline,
    pair_name,
    shared_words,
    unmatched_words,
)
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.fitting import Column
from moegeo_cli.reports.outline import TRACKS
from moegeo_cli.reports.page import STYLES, Page
from moegeo_cli.reports.terminal import TEXT_WIDTH

MAX_LAYERS = 8
PER_ROUTER = ("collapse", "fsi", "fhs_trace")
COLUMNS = (("A", "right"), ("B", "right"), ("B − A", "right"), ("better", "left"))


def print_comparison(record: ComparisonRecord, console: Console) -> None:
    """Print a comparison.

    Args:
        record: the comparison.
        console: the console to print on; the report fits its width, colours and encoding.
    """
    page = Page(console)
    page.show(Text("moegeo compare", "bold"))
    _print_runs(page, record)
    page.line(f"matched by {clean(record.matched_by)}: {len(record.pairs)} pairs", "dim")
    page.line()
    sentences = (*record.notes, record.reason)  # notes on comparability come first
    lines = [page.paragraph(clean(words), sign=page.glyphs.bullet) for words in sentences]
    title = Text(f" {page.glyphs.text(headline(record))} ", "bold")
    page.show(
        Panel(
            Group(*lines),
            title=title,
            title_align="left",
            padding=(1, 2),
            width=min(page.width, 110),
        )
    )
    if not record.pairs:
        page.line(f"No two checkpoints match by {clean(record.matched_by)}.")
    else:
        _print_pair(page, record, record.pairs[-1])
        _print_routers(page, record.pairs[-1])
    unmatched = unmatched_words(record)
    if unmatched:
        page.section("WITHOUT A MATCH")
    for words in unmatched:
        page.show(page.paragraph(words, sign=page.glyphs.bullet, indent=2))
    page.footnotes()


def render(record: ComparisonRecord) -> str:
    """The terminal report as plain text, for files."""
    file = io.StringIO()
    print_comparison(
        record, Console(file=file, force_jupyter=False, width=TEXT_WIDTH, color_system=None)
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _print_runs(page: Page, record: ComparisonRecord) -> None:
    """Print both runs with their verdicts."""
    table = page.table(
        ("", "left"), ("run", "wrap"), ("verdict", "left"), ("routing", "left"), ("loss", "left"),
        Column("checkpoints", drop=1),
    )  # fmt: skip
    for letter, run in (("A", record.run_a), ("B", record.run_b)):
        words = (run.status or "not judged", run.routing or "", run.performance or "")
        table.add(
            Text(letter, "bold"),
            page.text(clean(run.name, 80), "bold"),
            *(page.text(clean(word), STYLES.get(word, "")) for word in words),
            page.text("" if run.checkpoints is None else figures.count(run.checkpoints)),
        )
    page.show_table(table)


def _print_pair(page: Page, record: ComparisonRecord, pair: MatchedPair) -> None:
    """Print the headline metrics of the newest pair, on a wide page with trends of both runs."""
    page.section(
        f"AT {pair_name(record, pair).upper()}", "the newest matched pair; paired by probe sequence"
    )
    names = [name for name in TRACKS if name in pair.differences] or list(pair.differences)
    trends = page.wide and len(record.pairs) > 1
    table = page.table(
        ("", "left"), *COLUMNS, *([("A's trend", "left"), ("B's trend", "left")] if trends else [])
    )
    for name in names:
        row = [page.text(clean(figures.label(name))), *_cells(page, name, pair.differences[name])]
        table.add(*row, *(_trends(page, record, name) if trends else []))
    page.show_table(table)
    others = len(pair.differences) - len(names)
    words = "better: the side that the interval of B − A favours; ≠: neither direction is better"
    words += "" if page.wide else "; ±: longer side of 95% interval"
    words += "; both trends have the same scale" if trends else ""
    shared = shared_words(pair.shared)
    if shared:
        page.line(shared)
    if others:
        words += f". {figures.plural(others, 'more metric')}: --format markdown or json"
    page.line(words, "dim")


def _cells(page: Page, name: str, found: Difference) -> list[Text]:
    gap, side = found.difference, favoured(found)
    return [
        page.value(name, found.a),
        page.value(name, found.b),
        page.estimate(name, gap),
        page.text("≠" if side == "differs" else side.upper(), "bold"),
    ]


def _print_routers(page: Page, pair: MatchedPair) -> None:
    """Print each router in both runs; the one whose collapse differs most comes first."""
    names = PER_ROUTER if page.wide else PER_ROUTER[:2]
    shown = [n for n in names if any(n in x.differences for x in pair.layers)]
    if not shown:
        return

    def gap(layer: LayerPair) -> float:
        found = layer.differences.get(shown[0])
        return abs(found.difference.value or 0.0) if found else 0.0

    page.section("PER ROUTER", f"the largest difference of {figures.label(shown[0])} first")
    heads = [(f"{figures.label(n)} A", "B", "B − A") for n in shown]
    table = page.table(("layer", "right"), *((h, "right") for three in heads for h in three))
    for layer in sorted(pair.layers, key=lambda x: (-gap(x), x.layer))[:MAX_LAYERS]:
        cells = [Text(figures.layer_name(layer.layer, layer.router))]
        for name in shown:
            found = layer.differences.get(name)
            parts = (found.a, found.b, found.difference) if found else (None, None, None)
            cells += [page.value(name, part) for part in parts]
        table.add(*cells)
    page.show_table(table)
    if len(pair.layers) > MAX_LAYERS:
        page.line(f"and {len(pair.layers) - MAX_LAYERS} more: --format markdown", "dim")


def _trends(page: Page, record: ComparisonRecord, name: str) -> list[Text]:
    """Charts of a metric of both runs over the matched pairs, on the same scale."""
    pairs = [p.differences.get(name) for p in record.pairs]
    sides = [
        [getattr(p, side).value if p is not None else None for p in pairs] for side in ("a", "b")
    ]
    known = [v for values in sides for v in values if v is not None]
    if not known:
        return [Text(""), Text("")]
    ends = (min(known), max(known))
    return [Text(sparkline(values, page.glyphs, ends=ends), "cyan") for values in sides]
