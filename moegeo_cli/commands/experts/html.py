"""The HTML page of `moegeo experts`."""

from __future__ import annotations

from moegeo_cli.commands.experts import outline
from moegeo_cli.commands.experts.record import ExpertLayerRecord, ExpertsRecord
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.html.charts import Chart, Series, chart
from moegeo_cli.reports.html.packing import UNKNOWN, linear_level, pack
from moegeo_cli.reports.html.parts import (
    Cell,
    HeatMap,
    Page,
    Section,
    Table,
    actions,
    cards,
    check_table,
    metric_cell,
)

MAX_PAIRS = 130_000  # of the pair map; layers beyond it are left out
EXPERT_HEADS = (
    "layer", "expert", "tokens", "load × fair", "mass", "output norm", "Fisher trace",
    "nearest", "alignment with it",
)  # fmt: skip


def experts_page(record: ExpertsRecord) -> Page:
    """The page of an experts record."""
    columns = outline.COLUMNS
    rows = [
        [Cell(outline.place(x), x.layer, clean(x.router)),
         *(metric_cell(n, x.metrics[n], null=True) for n, _ in columns)]
        for x in record.layers
    ]  # fmt: skip
    table = Table("layers", "means over pairs of experts", ("layer", *(t for _, t in columns)),
                  rows, frozenset(range(len(columns) + 1)), outline.EXPLANATIONS)  # fmt: skip
    found = [
        Section("layers", "Layers", tables=[table], lines=outline.asymmetry(record)),
        Section("depth", "Over depth", charts=_charts(record)),
        _pairs(record),
        Section("merge", "Merge candidates", "Pairs with the most similar functions.",
                lines=outline.merges(record)),
        Section("prune", "Prune candidates", "Experts that contribute least.",
                lines=outline.prunes(record)),
        Section("verified", "Verified", tables=_trials(record)),
        Section("experts", "Experts", "Each expert by its numbers.", folded=True,
                tables=[_experts(record)]),
        Section("checks", "All checks", folded=True,
                tables=[check_table(record.checks)] if record.checks else ()),
        Section("method", "How this was measured", folded=True,
                terms=[("settings", outline.settings(record))]),
    ]  # fmt: skip
    sections = [s for s in found if s.tables or s.charts or s.maps or s.lines or s.terms]
    return Page(
        "experts", clean(record.name), "", "How similar experts are, and which to merge or prune.",
        outline.head(record), outline.gaps(record),
        findings=cards([f for f in record.findings if f.severity != "info"]),
        notes=cards([f for f in record.findings if f.severity == "info"]),
        actions=actions(record.interventions), sections=sections,
    )  # fmt: skip


def _charts(record: ExpertsRecord) -> list[Chart]:
    """Charts of the means over pairs, from the first layer to the last."""
    layers = record.layers
    names = [f"layer {outline.place(x)}" for x in layers]
    drawn = [
        chart(f"depth-{name}", title, name, [float(i) for i in range(len(layers))], names,
              [Series(title, [x.metrics[name] for x in layers])])
        for name, title in outline.COLUMNS
    ] if len(layers) > 2 else []  # fmt: skip
    return [c for c in drawn if c is not None]


def _pairs(record: ExpertsRecord) -> Section:
    """The map of the alignment of every pair, one frame per layer."""
    with_pairs = [x for x in record.layers if "alignment" in x.matrices]
    if not with_pairs:
        return Section("pairs", "")
    width = max(len(x.matrices["alignment"]) for x in with_pairs)
    kept = with_pairs[: max(MAX_PAIRS // (width * width), 1)]
    data = {
        "scale": "signed", "frames": [f"layer {outline.place(x)}" for x in kept],
        "rows": [f"expert {e}" for e in range(width)], "short": [str(e) for e in range(width)],
        "columns": width, "packed": [_matrix(x, width) for x in kept], "of": "expert",
        "unit": "", "marks": [], "suspects": [], "masked": [], "low": -1.0, "high": 1.0,
    }  # fmt: skip
    help = "Row and column are experts of one layer; the slider chooses the layer."
    left_out = len(with_pairs) - len(kept)
    if left_out:
        help += f" {figures.plural(left_out, 'more layer')} in JSON."
    shown = HeatMap("pairs", "alignment of every pair", help, ("−1", "0", "1"), data)
    return Section("pairs", "Pairs of experts", "1: two experts compute the same.", maps=[shown])


def _matrix(layer: ExpertLayerRecord, width: int) -> str:
    rows = [list(row) + [None] * (width - len(row)) for row in layer.matrices["alignment"]]
    rows += [[None] * width for _ in range(width - len(rows))]
    return pack(UNKNOWN if v is None else linear_level(v, -1.0, 1.0) for row in rows for v in row)


def _trials(record: ExpertsRecord) -> list[Table]:
    found = record.verification
    if found is None:
        return []
    rows = [
        [Cell(outline.action(t, found.count)), Cell(t.choice),
         Cell(outline.change(t), t.change.value), Cell(clean("; ".join(t.chosen)))]
        for t in found.trials
    ]  # fmt: skip
    caption = f"change of the probe's loss ({outline.loss(record)})"
    notes = [clean(note) for note in found.notes]
    return [Table("trials", caption, ("", "chosen by", "nats per token", "experts"), rows,
                  frozenset({2}), notes)]  # fmt: skip


def _experts(record: ExpertsRecord) -> Table:
    rows = []
    for layer in record.layers:
        for e in layer.expert:
            reasons = "; ".join(clean(r) for r in e.reasons)
            numbers = (None if e.load is None else e.load * layer.experts, e.mass, e.output_norm,
                       e.fisher_trace)  # fmt: skip
            rows.append([
                Cell(outline.place(layer), layer.layer), Cell(str(e.expert), e.expert),
                Cell(figures.count(e.tokens), e.tokens),
                *(Cell("–" if n is None else f"{n:.3g}", n, reasons if n is None else "")
                  for n in numbers),
                Cell("–" if e.nearest is None else str(e.nearest), e.nearest),
                metric_cell("alignment", e.nearest_alignment),
            ])  # fmt: skip
    return Table("experts", "every expert", EXPERT_HEADS, rows, frozenset(range(9)))
