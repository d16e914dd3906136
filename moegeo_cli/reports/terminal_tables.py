"""The tables of a run's full terminal report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from rich.text import Text

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import LayerRecord, Metric, RunRecord
from moegeo_cli.reports import figures, judgement, outline
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.fitting import Chart, Column, FittingTable
from moegeo_cli.reports.outline import Track
from moegeo_cli.reports.page import STYLES, Page

MAX_ROUTERS = 16  # rows per table; other formats have all routers
MIN_FOR_DEPTH = 4
STRIPS = (32, 24, 16, 8)  # possible widths of the load of a router's experts
MAX_DEPTH, MIN_DEPTH = 64, 8  # widths of a chart over layers
DEPTH = ("fsi", "collapse", "dispersion", "fhs", "heterogeneity_trace")
MARKS = {"failing": "!!", "watch": "!", "info": "i"}


def print_training(page: Page, record: RunRecord) -> None:
    """Print run-level metrics: first value, newest value, interval and trend."""
    found = outline.tracks(record)
    if len(record.checkpoints) == 1:
        _print_glance(page, found)
        return
    first, last = record.checkpoints[0], record.checkpoints[-1]
    page.section("OVER TRAINING", "loss in nats per token; the rest over all routers")
    heads = [figures.step_name(c.step, "first" if c is first else "last") for c in (first, last)]
    table = page.table(
        ("", "wrap"), Column(heads[0], drop=2), (heads[1], "right"),
        Column("95% interval", "left", drop=1),
        Column("trend", "left", widths=(40,) if page.wide else (14, 10, 7)),
    )  # fmt: skip
    for track in found:
        before, after = track.points[0], track.points[-1]
        table.add(
            _name(page, track.name),
            page.value(track.name, before),
            page.value(track.name, after),
            _ends(track.name, after),
            _trend(page, track),
        )
    page.show_table(table)


def _print_glance(page: Page, found: Sequence[Track]) -> None:
    """Print the metrics of a single checkpoint, with their values under balanced routing."""
    page.section("AT A GLANCE", "loss in nats per token; the rest over all routers")
    table = page.table(
        ("", "wrap"), ("value", "right"), Column("95% interval", "left", drop=2),
        Column("if balanced", drop=1), *([("meaning", "wrap")] if page.wide else []),
    )  # fmt: skip
    for track in found:
        metric = track.points[-1]
        null = metric.null_value if metric is not None else None
        spec = specs().get(track.name.removesuffix("_worst"))
        row = [
            _name(page, track.name),
            page.value(track.name, metric),
            _ends(track.name, metric),
            Text("" if null is None else figures.number(null, figures.decimals(track.name)), "dim"),
        ]
        if page.wide:
            row.append(page.text(spec.meaning if spec else "", "dim"))
        table.add(*row)
    page.show_table(table)


def _name(page: Page, name: str) -> Text:
    strong = name in {"fsi", "fhs", "loss"}
    return page.text(figures.label(name), "bold" if strong else "")


def _ends(name: str, metric: Metric | None) -> Text:
    return Text("" if metric is None else figures.interval(metric, figures.decimals(name)), "dim")


def print_routing(page: Page, record: RunRecord) -> None:
    """Print FSI, collapse, dead experts and load of each router, worst first."""
    ranked = judgement.worst_routers(record.newest, record.verdict)
    if not ranked:
        return
    where = figures.step_name(record.newest.step, "")
    page.section("ROUTING PER ROUTER (FSI)", f"{where}, worst first".lstrip(", "))
    table = page.table(
        ("layer", "right"), ("", "left"), Column("FSI", drop=1), ("collapse", "right"),
        *((("dispersion", "right"), ("information", "right")) if page.wide else ()),
        ("dead", "right"), Column("load per expert", "left", widths=STRIPS),
    )  # fmt: skip
    for layer, severity in ranked[:MAX_ROUTERS]:
        row = [*_place(layer, severity)]
        row += [page.estimate(n, layer.metrics.get(n)) for n in ("fsi", "collapse")]
        if page.wide:
            row += [page.value(n, layer.metrics.get(n)) for n in ("dispersion", "information")]
        table.add(*row, _dead(page, layer), partial(_strip, page, layer))
    _add_medians(page, table, ranked, ("fsi", "collapse"), ("dispersion", "information"), 2)
    page.show_table(table)
    _more(page, ranked)
    blocks = page.glyphs
    words = (
        f"{blocks.blocks[3]} fair share, {blocks.blocks[7]} twice that or more, {blocks.none} none"
    )
    plus_minus = "" if page.wide else "; ±: longer side of 95% interval"
    page.line(f"load: {words}{plus_minus}", "dim")
    if any(layer.suspects for layer, _ in ranked[:MAX_ROUTERS]):
        page.line("dead: +n? are experts that look unused, but on too few tokens to decide", "dim")
    marks = table.width_of(-1)
    most = max(layer.experts for layer, _ in ranked)
    if most > marks:
        page.line(f"load: {most} experts are sorted by load and drawn in {marks} marks", "dim")


def print_fisher(page: Page, record: RunRecord) -> None:
    """Print FHS and heterogeneity of each router, worst first."""
    ranked = judgement.worst_routers(record.newest, record.verdict)
    names = ("fhs", "heterogeneity", "heterogeneity_trace", "heterogeneity_conditional")
    if not any(n in layer.metrics for layer, _ in ranked for n in names):
        return
    kind = record.settings.get("fisher")
    of = f"{kind.get('kind')} Fisher, " if isinstance(kind, dict) else ""
    page.section(
        "FISHER HETEROGENEITY PER ROUTER (FHS)",
        f"{of}FHS = H(now) / H(baseline), 1 is no change",
    )
    table = page.table(
        ("layer", "right"), ("", "left"), ("FHS", "right"), Column("H", drop=1),
        Column("H trace", drop=3), Column("H cond.", drop=2),
        *([("Fisher trace per expert", "left")] if page.wide else []),
    )  # fmt: skip
    for layer, severity in ranked[:MAX_ROUTERS]:
        row = [
            *_place(layer, severity),
            page.estimate("fhs", layer.metrics.get("fhs"), whole=True),
            page.value("heterogeneity", layer.metrics.get("heterogeneity")),
            page.estimate("heterogeneity_trace", layer.metrics.get("heterogeneity_trace")),
            page.estimate(
                "heterogeneity_conditional", layer.metrics.get("heterogeneity_conditional")
            ),
        ]
        if page.wide:
            row.append(page.strip(_shares(layer.fisher_trace), 32))
        table.add(*row)
    _add_medians(page, table, ranked, names, (), 1 if page.wide else 0)
    page.show_table(table)
    _more(page, ranked)
    page.line(
        "H in nats² per weight²; trace: spread of the Fisher traces over their mean; "
        "cond.: heterogeneity without the effect of load",
        "dim",
    )


def print_depth(page: Page, record: RunRecord) -> None:
    """Print metrics from the first layer to the last, for models with enough routers."""
    layers = sorted(record.newest.layers, key=lambda x: x.layer)
    if len(layers) < MIN_FOR_DEPTH:
        return
    page.section("OVER DEPTH", f"layer {layers[0].layer} to {layers[-1].layer}")
    table = page.table(
        ("", "wrap"), Column("lowest", drop=1), ("highest", "right"),
        Column("by layer", "left", widths=tuple(_marks(len(layers)))),
    )  # fmt: skip
    for name in DEPTH:
        track = Track(name, tuple(layer.metrics.get(name) for layer in layers))
        values = [p.value if p else None for p in track.points]
        known = [v for v in values if v is not None]
        if not known:
            continue
        places = figures.decimals(name)
        table.add(
            _name(page, name),
            Text(figures.number(min(known), places)),
            Text(figures.number(max(known), places)),
            partial(_by_layer, page, values, track.noise),
        )
    page.show_table(table)
    per_mark = -(-len(layers) // table.width_of(-1))
    if per_mark > 1:
        page.line(f"by layer: each mark is the mean of {per_mark} consecutive layers", "dim")


def print_dynamics(page: Page, record: RunRecord) -> None:
    """Print how far routing moved between successive checkpoints."""
    headings, found = outline.dynamics_tracks(record)
    if not found:
        return
    page.section("BETWEEN CHECKPOINTS", "Fisher-Rao motion of routing on the same probe")
    shown = 6 if page.wide else 3
    kept = range(len(headings))[-shown:]
    table = page.table(
        ("", "wrap"),
        *(Column(headings[i], drop=place) for place, i in enumerate(kept[:-1], 1)),
        (headings[-1], "right"), Column("trend", "left", widths=(24, 14, 8)),
    )  # fmt: skip
    for track in found:
        table.add(
            page.text(figures.label(track.name)),
            *(page.value(track.name, track.points[i]) for i in kept),
            _trend(page, track),
        )
    page.show_table(table)
    if len(headings) > shown:
        page.line(f"the last {shown} of {len(headings)} moves; the trend shows all", "dim")


def _trend(page: Page, track: Track) -> Chart:
    """The chart of a metric over the checkpoints, as a function of its width."""
    values = [p.value if p else None for p in track.points]
    return lambda width: Text(
        sparkline(values, page.glyphs, width=width, floor=track.noise), "cyan"
    )


def _marks(layers: int) -> Iterator[int]:
    """Widths of a chart over layers at which every mark is the mean of equally many layers."""
    for per_mark in range(1, layers):
        marks = -(-layers // per_mark)
        if marks <= MAX_DEPTH:
            yield marks
        if marks <= MIN_DEPTH:
            return


def _by_layer(page: Page, values: Sequence[float | None], noise: float, width: int) -> Text:
    per_mark = -(-len(values) // width)
    means = []
    for start in range(0, len(values), per_mark):
        known = [v for v in values[start : start + per_mark] if v is not None]
        means.append(sum(known) / len(known) if known else None)
    return Text(sparkline(means, page.glyphs, width=width, floor=noise), "cyan")


def _place(layer: LayerRecord, severity: str | None) -> tuple[Text, Text]:
    """The layer, and a sign for its worst finding."""
    style = STYLES.get(severity or "", "")
    name = figures.layer_name(layer.layer, layer.router)
    return Text(name, style), Text(MARKS.get(severity or "", ""), style)


def _dead(page: Page, layer: LayerRecord) -> Text:
    metric = layer.metrics.get("dead_experts")
    if metric is None or metric.value is None:
        return page.value("dead_experts", metric)
    style = "bold red" if metric.value > 0 else ""
    maybe = f" +{len(layer.suspects)}?" if layer.suspects else ""
    return Text(f"{metric.value:.0f}/{layer.choices}{maybe}", style)


def _strip(page: Page, layer: LayerRecord, width: int) -> Text:
    if layer.state != "ok":
        return page.text(outline.STATES.get(layer.state, layer.state), "bold red")
    return page.strip(layer.load, width)


def _shares(values: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
    total = sum(v for v in values if v is not None) if values else 0.0
    if not values or total <= 0:
        return None
    return tuple(None if v is None else v / total for v in values)


def _add_medians(
    page: Page,
    table: FittingTable,
    ranked: Sequence[tuple[LayerRecord, str | None]],
    names: Sequence[str],
    wide_names: Sequence[str],
    blanks: int,
) -> None:
    """Add a last row with medians over routers, if there are enough routers."""
    if len(ranked) < MIN_FOR_DEPTH:
        return
    cells = [Text("median", "dim"), Text()]
    for name in (*names, *(wide_names if page.wide else ())):
        known = sorted(
            m.value for x, _ in ranked if (m := x.metrics.get(name)) and m.value is not None
        )
        middle = (known[(len(known) - 1) // 2] + known[len(known) // 2]) / 2 if known else None
        cells.append(
            Text("" if middle is None else figures.number(middle, figures.decimals(name)), "dim")
        )
    table.add(*cells, *[Text()] * blanks)


def _more(page: Page, ranked: Sequence[tuple[LayerRecord, str | None]]) -> None:
    if len(ranked) > MAX_ROUTERS:
        rest = figures.plural(len(ranked) - MAX_ROUTERS, "more router")
        page.line(f"and {rest}: see --format json or csv", "dim")
