"""The terminal report's tables: over training, per router, over depth, between checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from moegeo_cli.catalogue import SPECS
from moegeo_cli.records import LayerRecord, Metric, RunRecord
from moegeo_cli.reports import figures, judgement, outline
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.outline import Track
from moegeo_cli.reports.page import STYLES, Page

MOST_ROUTERS = 16  # rows per table; the others are counted, and every format but this has them
FEWEST_FOR_DEPTH = 4
DEPTH = ("fsi", "collapse", "dispersion", "fhs", "heterogeneity_trace")
MARKS = {"failing": "!!", "watch": "!", "info": "i"}


def print_training(page: Page, record: RunRecord) -> None:
    """Run-level metrics: the newest value, and how it came there."""
    found = outline.tracks(record)
    if len(record.checkpoints) == 1:
        _print_glance(page, found)
        return
    first, last = record.checkpoints[0], record.checkpoints[-1]
    page.section("OVER TRAINING", "loss in nats per token; the rest over all routers")
    heads = [figures.step_name(c.step, "first" if c is first else "last") for c in (first, last)]
    table = page.table(
        ("", "left"), (heads[0], "right"), (heads[1], "right"), ("95% interval", "left"),
        ("trend", "left"),
    )  # fmt: skip
    for track in found:
        before, after = track.points[0], track.points[-1]
        table.add_row(
            _name(page, track.name),
            page.value(track.name, before),
            page.value(track.name, after),
            _ends(track.name, after),
            Text(
                sparkline(
                    [p.value if p else None for p in track.points], page.glyphs,
                    width=40 if page.wide else 14, floor=track.noise,
                ), "cyan",
            ),
        )  # fmt: skip
    page.show(table)


def _print_glance(page: Page, found: Sequence[Track]) -> None:
    """One checkpoint: values with what balanced routing would give, and what they mean."""
    page.section("AT A GLANCE", "loss in nats per token; the rest over all routers")
    columns = [("", "left"), ("value", "right"), ("95% interval", "left"), ("if balanced", "right")]
    table = page.table(*columns, *([("meaning", "wrap")] if page.wide else []))
    for track in found:
        metric = track.points[-1]
        null = metric.null_value if metric is not None else None
        spec = SPECS.get(track.name.removesuffix("_worst"))
        row = [
            _name(page, track.name),
            page.value(track.name, metric),
            _ends(track.name, metric),
            Text("" if null is None else figures.number(null, figures.decimals(track.name)), "dim"),
        ]
        if page.wide:
            row.append(page.text(spec.meaning if spec else "", "dim"))
        table.add_row(*row)
    page.show(table)


def _name(page: Page, name: str) -> Text:
    strong = name in {"fsi", "fhs", "loss"}
    return page.text(figures.label(name), "bold" if strong else "")


def _ends(name: str, metric: Metric | None) -> Text:
    return Text("" if metric is None else figures.interval(metric, figures.decimals(name)), "dim")


def print_routing(page: Page, record: RunRecord) -> None:
    """FSI, collapse, dead experts and load of each router, the worst first."""
    ranked = judgement.worst_routers(record.newest, record.verdict)
    if not ranked:
        return
    where = figures.step_name(record.newest.step, "")
    page.section("ROUTING PER ROUTER (FSI)", f"{where}, worst first".lstrip(", "))
    strip = 32
    crowded = any(layer.experts > strip for layer, _ in ranked)
    columns = [("layer", "right"), ("", "left"), ("FSI", "right"), ("collapse", "right")]
    if page.wide:
        columns += [("dispersion", "right"), ("information", "right")]
    columns += [("dead", "right"), ("load per expert" + (", sorted" if crowded else ""), "left")]
    table = page.table(*columns)
    for layer, severity in ranked[:MOST_ROUTERS]:
        row = [*_place(layer, severity)]
        row += [page.estimate(n, layer.metrics.get(n)) for n in ("fsi", "collapse")]
        if page.wide:
            row += [page.value(n, layer.metrics.get(n)) for n in ("dispersion", "information")]
        row += [_dead(page, layer), _strip(page, layer, strip)]
        table.add_row(*row)
    _quartiles(page, table, ranked, ("fsi", "collapse"), ("dispersion", "information"), 2)
    page.show(table)
    _more(page, ranked)
    blocks = page.glyphs
    page.line(
        f"load: {blocks.blocks[3]} fair share, {blocks.blocks[7]} twice that or more, "
        f"{blocks.none} none" + ("" if page.wide else "; ± 95%, the longer side"),
        "dim",
    )


def print_fisher(page: Page, record: RunRecord) -> None:
    """FHS and heterogeneity of each router, the worst first."""
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
        ("layer", "right"), ("", "left"), ("FHS", "right"), ("H", "right"), ("H trace", "right"),
        ("H cond.", "right"), *([("Fisher trace per expert", "left")] if page.wide else []),
    )  # fmt: skip
    for layer, severity in ranked[:MOST_ROUTERS]:
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
        table.add_row(*row)
    _quartiles(page, table, ranked, names, (), 1 if page.wide else 0)
    page.show(table)
    _more(page, ranked)
    page.line(
        "H in nats² per weight²; trace: spread of the Fisher traces over their mean; "
        "cond.: the same with load taken out",
        "dim",
    )


def print_depth(page: Page, record: RunRecord) -> None:
    """Metrics from the first layer to the last, for models with enough routers to show a shape."""
    layers = sorted(record.newest.layers, key=lambda x: x.layer)
    if len(layers) < FEWEST_FOR_DEPTH:
        return
    page.section("OVER DEPTH", f"layer {layers[0].layer} to {layers[-1].layer}")
    table = page.table(
        ("", "left"), ("lowest", "right"), ("highest", "right"), ("by layer", "left")
    )
    for name in DEPTH:
        track = Track(name, tuple(layer.metrics.get(name) for layer in layers))
        values = [p.value if p else None for p in track.points]
        known = [v for v in values if v is not None]
        if not known:
            continue
        places = figures.decimals(name)
        table.add_row(
            _name(page, name),
            Text(figures.number(min(known), places)),
            Text(figures.number(max(known), places)),
            Text(
                sparkline(values, page.glyphs, width=64 if page.wide else 40, floor=track.noise),
                "cyan",
            ),
        )
    page.show(table)


def print_dynamics(page: Page, record: RunRecord) -> None:
    """How far routing moved between successive checkpoints."""
    headings, found = outline.dynamics_tracks(record)
    if not found:
        return
    page.section("BETWEEN CHECKPOINTS", "Fisher-Rao motion of routing on the same probe")
    shown = 6 if page.wide else 3
    kept = range(len(headings))[-shown:]
    table = page.table(
        ("", "left"), *((headings[i], "right") for i in kept), ("trend", "left"),
    )  # fmt: skip
    for track in found:
        table.add_row(
            page.text(figures.label(track.name)),
            *(page.value(track.name, track.points[i]) for i in kept),
            Text(
                sparkline(
                    [p.value if p else None for p in track.points], page.glyphs, floor=track.noise
                ),
                "cyan",
            ),
        )
    page.show(table)
    if len(headings) > shown:
        page.line(f"the last {shown} of {len(headings)} moves; the trend is of all", "dim")


def _place(layer: LayerRecord, severity: str | None) -> tuple[Text, Text]:
    """The layer, and a mark for the worst finding on it."""
    style = STYLES.get(severity or "", "")
    name = figures.layer_name(layer.layer, layer.router)
    return Text(name, style), Text(MARKS.get(severity or "", ""), style)


def _dead(page: Page, layer: LayerRecord) -> Text:
    metric = layer.metrics.get("dead_experts")
    if metric is None or metric.value is None:
        return page.value("dead_experts", metric)
    style = "bold red" if metric.value > 0 else ""
    return Text(f"{metric.value:.0f}/{layer.choices}", style)


def _strip(page: Page, layer: LayerRecord, width: int) -> Text:
    if layer.state != "ok":
        return page.text(outline.STATES.get(layer.state, layer.state), "bold red")
    return page.strip(layer.load, width)


def _shares(values: tuple[float | None, ...] | None) -> tuple[float | None, ...] | None:
    total = sum(v for v in values if v is not None) if values else 0.0
    if not values or total <= 0:
        return None
    return tuple(None if v is None else v / total for v in values)


def _quartiles(
    page: Page,
    table: Table,
    ranked: Sequence[tuple[LayerRecord, str | None]],
    names: Sequence[str],
    wide_names: Sequence[str],
    blanks: int,
) -> None:
    """The median over routers as a last row, where there are enough to mean something."""
    if len(ranked) < FEWEST_FOR_DEPTH:
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
    table.add_row(*cells, *[Text()] * blanks)


def _more(page: Page, ranked: Sequence[tuple[LayerRecord, str | None]]) -> None:
    if len(ranked) > MOST_ROUTERS:
        rest = figures.plural(len(ranked) - MOST_ROUTERS, "more router")
        page.line(f"and {rest}: see --format json or csv", "dim")
