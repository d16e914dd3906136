"""The HTML page of `moegeo routing`."""

from __future__ import annotations

from moegeo_cli.commands.routing import outline
from moegeo_cli.commands.routing.record import RoutingLayerRecord, RoutingRecord
from moegeo_cli.commands.routing.tables import Table as RoutingTable
from moegeo_cli.commands.routing.tables import tables
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.html.packing import pack, ratio_level
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

MAX_VALUES = 130_000


def routing_page(record: RoutingRecord) -> Page:
    """The page of a routing record."""
    found = [
        Section("glance", "At a glance", "Means over layers.", lines=outline.sentences(record)),
        _domains(record),
        *(_section(place, table) for place, table in enumerate(tables(record, most=None))),
        Section("checks", "All checks", folded=True,
                tables=[check_table(record.checks)] if record.checks else ()),
        Section("method", "How this was measured", folded=True,
                terms=[("settings", outline.settings_words(record))]),
    ]  # fmt: skip
    return Page(
        "routing", clean(record.name), "", "What the choice of experts depends on.",
        outline.head_lines(record), outline.gaps(record),
        findings=cards([f for f in record.findings if f.severity != "info"]),
        notes=cards([f for f in record.findings if f.severity == "info"]),
        actions=actions(record.interventions),
        sections=[s for s in found if s.tables or s.maps or s.lines or s.terms],
    )  # fmt: skip


def _section(place: int, table: RoutingTable) -> Section:
    rows = [
        [Cell(clean(name), _number(name, at)),
         *(metric_cell(c.name, c.metric, null=c.null) for c in cells)]
        for at, (name, cells) in enumerate(table.rows)
    ]  # fmt: skip
    shown = Table(f"table-{place}", table.explanation, table.heads, rows,
                  frozenset(range(len(table.heads))), table.notes)  # fmt: skip
    return Section(f"part-{place}", table.title.capitalize(), tables=[shown])


def _number(name: str, place: int) -> float:
    """The sort key of a row: the number in a layer's or step's name, else its position."""
    digits = name.removeprefix("step ").replace(",", "").split(" ")[0]
    return float(digits) if digits.isdecimal() else float(place)


def _domains(record: RoutingRecord) -> Section:
    """The map of each expert's load by domain over its mean, one frame per layer."""
    layers = [x for x in record.layers if x.domain_load]
    if not layers:
        return Section("domains", "")
    domains = list(dict.fromkeys(d for x in layers for d in x.domain_load))
    width = max(x.experts for x in layers)
    kept = layers[: max(MAX_VALUES // (width * len(domains)), 1)]
    places = [f"layer {figures.layer_name(x.layer, x.router)}" for x in kept]
    data = {
        "scale": "ratio", "frames": places,
        "rows": [clean(d) for d in domains], "short": [clean(d, 14) for d in domains],
        "columns": width, "packed": [_lifts(x, domains, width) for x in kept], "of": "expert",
        "unit": "× its mean over the domains", "marks": [], "suspects": [], "masked": [],
    }  # fmt: skip
    help = (
        "Rows are domains of the probe, columns are experts of the layer. The colour is the "
        "expert's share of the domain's tokens over its mean share over all domains. The slider "
        "chooses the layer."
    )
    left_out = len(layers) - len(kept)
    if left_out:
        help += f" {figures.plural(left_out, 'more layer')} in JSON."
    legend = ("none", "as the mean", "8 times and more")
    shown = HeatMap("domains", "experts by domain", help, legend, data)
    return Section("domains", "Which expert gets which domain", maps=[shown])


def _lifts(layer: RoutingLayerRecord, domains: list[str], width: int) -> str:
    loads = [layer.domain_load.get(d, ()) for d in domains]
    levels = []
    means = []
    for expert in range(width):
        known = [v[expert] for v in loads if expert < len(v) and v[expert] is not None]
        total = sum(v for v in known if v is not None)
        means.append(total / len(known) if known and total > 0 else None)
    for values in loads:
        for expert, mean in enumerate(means):
            value = values[expert] if expert < len(values) else None
            levels.append(ratio_level(None if value is None or mean is None else value / mean))
    return pack(levels)
