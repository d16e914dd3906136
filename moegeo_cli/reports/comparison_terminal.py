"""The terminal report of two runs compared."""

from __future__ import annotations

import io

from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from moegeo_cli.comparison import ComparisonRecord, Difference, MatchedPair
from moegeo_cli.reports import figures
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.comparison_text import (
    favoured,
    headline,
    pair_name,
    run_words,
    unmatched_words,
)
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page
from moegeo_cli.reports.terminal import TEXT_WIDTH

MOST_LAYERS = 8


def print_comparison(record: ComparisonRecord, console: Console) -> None:
    """Print a comparison.

    Args:
        record: the comparison.
        console: where to; the report fits its width, colours and encoding.
    """
    page = Page(console)
    page.show(Text("moegeo compare", "bold"))
    for letter, run in (("A", record.run_a), ("B", record.run_b)):
        page.show(page.paragraph(run_words(run), STYLES.get(run.status or "", ""), sign=letter))
    page.line(f"matched by {clean(record.matched_by)}: {len(record.pairs)} pairs", "dim")
    page.line()
    lines = [page.paragraph(clean(record.reason), sign=page.glyphs.bullet)]
    lines += [page.paragraph(clean(note), sign=page.glyphs.bullet) for note in record.notes]
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
        _print_routers(page, record, record.pairs[-1])
        _print_trends(page, record)
    unmatched = unmatched_words(record)
    if unmatched:
        page.section("WITHOUT A MATCH")
    for words in unmatched:
        page.show(page.paragraph(words, sign=page.glyphs.bullet, indent=2))
    page.footnotes()


def render(record: ComparisonRecord) -> str:
    """The terminal report as plain text, for files."""
    file = io.StringIO()
    print_comparison(record, Console(file=file, width=TEXT_WIDTH, color_system=None))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _print_pair(page: Page, record: ComparisonRecord, pair: MatchedPair) -> None:
    page.section(
        f"AT {pair_name(record, pair).upper()}", "the newest matched pair; paired by probe sequence"
    )
    table = page.table(
        ("", "left"), ("A", "right"), ("B", "right"), ("B − A", "right"), ("95% interval", "left"),
        ("better", "left"),
    )  # fmt: skip
    for name, found in pair.differences.items():
        table.add_row(page.text(clean(figures.label(name))), *_cells(page, name, found))
    page.show(table)


def _cells(page: Page, name: str, found: Difference) -> list[Text]:
    gap, side = found.difference, favoured(found)
    return [
        page.value(name, found.a),
        page.value(name, found.b),
        page.value(name, gap),
        Text(figures.interval(gap, figures.decimals(name)), "dim"),
        Text(side.upper() if len(side) == 1 else side, "bold"),
    ]


def _print_routers(page: Page, record: ComparisonRecord, pair: MatchedPair) -> None:
    """The routers that differ most, by the size of their largest difference."""
    found = [(x, n, d) for x in pair.layers for n, d in x.differences.items()]
    found = [row for row in found if row[2].difference.value is not None]
    found.sort(key=lambda row: (not favoured(row[2]), -abs(row[2].difference.value or 0)))
    if not found:
        return
    page.section("ROUTERS THAT DIFFER MOST")
    table = page.table(
        ("layer", "right"), ("", "left"), ("A", "right"), ("B", "right"), ("B − A", "right"),
        ("95% interval", "left"), ("better", "left"),
    )  # fmt: skip
    for layer, name, difference in found[:MOST_LAYERS]:
        table.add_row(
            Text(str(layer.layer)),
            page.text(clean(figures.label(name))),
            *_cells(page, name, difference),
        )
    page.show(table)


def _print_trends(page: Page, record: ComparisonRecord) -> None:
    """Both runs' metrics over the matched pairs, on one scale."""
    if len(record.pairs) < 2:
        return
    names = [
        n for n in record.pairs[-1].differences if all(n in p.differences for p in record.pairs)
    ]
    page.section("OVER TRAINING", "A and B on one scale, matched pairs only")
    table = page.table(
        ("", "left"), ("A", "left"), ("B", "left"), ("B − A first", "right"), ("last", "right")
    )
    for name in names:
        a = [p.differences[name].a.value for p in record.pairs]
        b = [p.differences[name].b.value for p in record.pairs]
        known = [v for v in (*a, *b) if v is not None]
        if not known:
            continue
        ends = (min(known), max(known))
        gaps = [p.differences[name].difference for p in (record.pairs[0], record.pairs[-1])]
        table.add_row(
            page.text(clean(figures.label(name))),
            Text(sparkline(a, page.glyphs, ends=ends), "cyan"),
            Text(sparkline(b, page.glyphs, ends=ends), "cyan"),
            *(page.value(name, gap) for gap in gaps),
        )
    page.show(table)
