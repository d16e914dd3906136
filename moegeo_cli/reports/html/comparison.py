"""The HTML page of `moegeo compare`."""

from __future__ import annotations

from moegeo_cli.records import Metric
from moegeo_cli.records.comparison import ComparisonRecord, Difference, MatchedPair
from moegeo_cli.reports import figures
from moegeo_cli.reports.comparison_text import (
    favoured,
    headline,
    pair_name,
    run_words,
    shared_words,
    unmatched_words,
)
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.folding import fold_reason
from moegeo_cli.reports.html.charts import Chart, Series, chart
from moegeo_cli.reports.html.parts import Cell, Page, Section, Table, glossary, metric_cell
from moegeo_cli.reports.outline import TRACKS, probe_words

PER_ROUTER = ("collapse", "fsi", "fhs_trace")


def comparison_page(record: ComparisonRecord) -> Page:
    """The page of a comparison record."""
    sections = []
    if record.pairs:
        newest = record.pairs[-1]
        names = [n for n in TRACKS if n in newest.differences] or list(newest.differences)
        charts = [c for n in names if (c := _chart(record, n))] if len(record.pairs) > 1 else []
        sections += [
            Section("pair", f"At {pair_name(record, newest)}", shared_words(newest.shared),
                    tables=[_table(newest, names)]),
            Section("training", "Over training", "Both runs at their matched checkpoints.",
                    charts=charts),
            Section("routers", "Routers", "The newest matched pair.",
                    tables=[_routers(newest)] if newest.layers else []),
            Section("more", "All other metrics", folded=True,
                    tables=[_table(newest, [n for n in newest.differences if n not in names])]),
            Section("words", "Words", folded=True, terms=glossary(list(newest.differences))),
        ]  # fmt: skip
    sections.append(Section("unmatched", "Without a match", lines=unmatched_words(record)))
    return Page(
        "compare",
        f"{clean(record.run_a.name, 60)} and {clean(record.run_b.name, 60)}",
        f"{record.healthier.upper()} is healthier" if record.healthier else "no difference shown",
        headline(record),
        [
            f"A: {run_words(record.run_a)}",
            f"B: {run_words(record.run_b)}",
            f"matched by {clean(record.matched_by)}: {figures.plural(len(record.pairs), 'pair')}",
            f"probe {probe_words(record.probe)}",
        ],
        reasons=[*(clean(note) for note in record.notes), clean(record.reason)],
        sections=[s for s in sections if s.charts or s.tables or s.lines or s.terms],
    )


def _table(pair: MatchedPair, names: list[str]) -> Table:
    rows = []
    for name in names:
        found = pair.differences[name]
        side = favoured(found)
        rows.append([
            Cell(clean(figures.label(name))), metric_cell(name, found.a),
            metric_cell(name, found.b), metric_cell(name, found.difference),
            Cell("differs" if side == "differs" else side.upper()),
        ])  # fmt: skip
    return Table(
        f"pair-{len(names)}", "paired by probe sequence", ("metric", "A", "B", "B − A", "better"),
        rows, frozenset({1, 2, 3}),
        ["better: the side that the 95% interval of B − A favours; differs: neither direction is "
         "better"],
    )  # fmt: skip


def _routers(pair: MatchedPair) -> Table:
    used = [n for n in PER_ROUTER if any(n in x.differences for x in pair.layers)]
    heads = ["layer", *(f"{figures.label(n)} {side}" for n in used for side in ("A", "B", "B − A"))]
    rows = []
    for layer in pair.layers:
        cells = [Cell(figures.layer_name(layer.layer, layer.router), layer.layer,
                      clean(layer.router))]  # fmt: skip
        for name in used:
            found = layer.differences.get(name)
            sides = (found.a, found.b, found.difference) if found else (None, None, None)
            cells += [_short(name, side) for side in sides]
        rows.append(cells)
    return Table("routers", "each router in both runs", heads, rows, frozenset(range(len(heads))))


def _short(name: str, metric: Metric | None) -> Cell:
    """A value, with its interval as a note."""
    if metric is None or metric.value is None:
        return metric_cell(name, metric)
    places = figures.decimals(name)
    note = figures.interval(metric, places) or (fold_reason(metric.reason) if metric.reason else "")
    return Cell(figures.number(metric.value, places), metric.value, note)


def _chart(record: ComparisonRecord, name: str) -> Chart | None:
    found: list[Difference | None] = [p.differences.get(name) for p in record.pairs]
    return chart(
        f"chart-{name}", figures.label(name), name, [float(i) for i in range(len(found))],
        [pair_name(record, pair) for pair in record.pairs],
        [Series("A", [f.a if f else None for f in found]),
         Series("B", [f.b if f else None for f in found])],
    )  # fmt: skip
