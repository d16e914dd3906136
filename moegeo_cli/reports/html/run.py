"""The HTML page of a run: verdict, advice, trends, load map and routers; the rest is folded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from moegeo_cli.records import CheckpointRecord, LayerRecord, Metric, RunRecord
from moegeo_cli.reports import advice_text, figures, judgement, outline, summary
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.html.charts import Chart, Series, chart
from moegeo_cli.reports.html.packing import pack, ratio_level, ratios, spread
from moegeo_cli.reports.html.parts import (
    Cell,
    HeatMap,
    Page,
    Section,
    Table,
    Tile,
    actions,
    cards,
    check_table,
    glossary,
    metric_cell,
)

MAX_VALUES = 155_000  # of the load map; beyond it, checkpoints between the ends are left out
FIRST_TRENDS = ("loss", "collapse_worst", "dead_experts", "fsi", "information", "near_ties_worst")
ROUTER_METRICS = (
    "collapse", "effective_experts", "dead_experts", "fsi", "information", "near_ties",
    "max_violation",
)  # fmt: skip
FISHER_METRICS = (
    "fhs", "heterogeneity", "heterogeneity_trace", "heterogeneity_conditional",
)  # fmt: skip
DEPTH_METRICS = ("collapse", "fsi", "information", "heterogeneity_trace")


def run_page(record: RunRecord) -> Page:
    """The page of a run record."""
    verdict = record.verdict
    main, notes = summary.main_findings(verdict)
    loss = verdict.performance if verdict else ""
    word = "not judged" if loss == "undetermined" else clean(loss)
    lamps = [("routing", clean(verdict.routing)), ("loss", word)] if verdict else []
    warnings = outline.coverage_gaps(record.newest)
    warnings += [f"left out {skipped}" for skipped in outline.skipped_checkpoints(record)]
    sections = [
        Section("numbers", "Five numbers", tiles=_tiles(record)),
        _training(record),
        _trends(record),
        _load(record),
        _routers(record),
        _depth(record),
        _moves(record),
        _fisher(record),
        Section(
            "checks",
            "All checks",
            judgement.check_words(verdict),
            folded=True,
            tables=[check_table(verdict.checks)] if verdict and verdict.checks else [],
        ),
        Section("method", "How this was measured", folded=True, terms=outline.method(record)),
        Section("words", "Words", folded=True, terms=glossary(_names(record))),
    ]
    return Page(
        "analyze",
        clean(record.run.get("name", "run")),
        clean(verdict.status) if verdict else "not judged",
        summary.verdict_sentence(verdict),
        [
            outline.identity(record),
            outline.checkpoint_words(record),
            f"probe {outline.probe_words(record.probe)}",
        ],
        warnings,
        lamps,
        summary.further_reasons(verdict),
        cards(main),
        cards(notes),
        actions(record.interventions),
        advice_text.folded_words(record.interventions),
        [s for s in sections if s is not None and _has_content(s)],
    )


def _has_content(section: Section) -> bool:
    return bool(
        section.tiles or section.charts or section.maps or section.tables or section.lines
        or section.terms
    )  # fmt: skip


def _names(record: RunRecord) -> list[str]:
    layers = record.newest.layers
    return [*(t.name for t in outline.tracks(record)), *(layers[0].metrics if layers else ())]


def _steps(checkpoints: Sequence[CheckpointRecord]) -> list[str]:
    return [figures.step_name(c.step, clean(c.path)) for c in checkpoints]


def _places(checkpoints: Sequence[CheckpointRecord]) -> list[float]:
    """Positions of the checkpoints on an axis: their steps, or their order if a step is missing."""
    steps = [c.step for c in checkpoints]
    known = [float(s) for s in steps if s is not None]
    rising = all(a < b for a, b in pairwise(known))
    return known if len(known) == len(steps) and rising else [float(i) for i in range(len(steps))]


def _track(
    record: RunRecord, name: str, points: Sequence[Metric | None], *, bare: bool
) -> Chart | None:
    return chart(
        f"{'tile' if bare else 'chart'}-{name}", figures.label(name), name,
        _places(record.checkpoints), _steps(record.checkpoints),
        [Series(figures.label(name), points)], bare=bare,
    )  # fmt: skip


def _tiles(record: RunRecord) -> list[Tile]:
    many = len(record.checkpoints) > 1
    found = []
    for number in summary.numbers(record):
        track = number.track
        first, last = track.points[0], track.points[-1]
        name = track.name
        label = figures.label(name).removesuffix(", worst router")
        found.append(
            Tile(
                label,
                metric_cell(name, last).text.partition(" ")[0],
                f"{metric_cell(name, first).text.partition(' ')[0]} at first" if many else "",
                number.meaning,
                _track(record, name, track.points, bare=True) if many else None,
            )
        )
    return found


def _training(record: RunRecord) -> Section:
    found = outline.tracks(record)
    if len(record.checkpoints) == 1:
        rows = [
            [Cell(figures.label(t.name)), metric_cell(t.name, t.points[-1]),
             Cell(figures.unit(t.name, t.points[-1]))]
            for t in found
        ]  # fmt: skip
        table = Table("values", "over all routers", ("metric", "value and 95% interval", "unit"),
                      rows, frozenset({1}))  # fmt: skip
        return Section("training", "At a glance", tables=[table])
    charts = _drawn(record, [t for t in found if t.name in FIRST_TRENDS])
    heads = ("checkpoint", *(figures.label(t.name) for t in found))
    rows = [
        [Cell(name, place), *(metric_cell(t.name, t.points[i]) for t in found)]
        for i, (name, place) in enumerate(
            zip(_steps(record.checkpoints), _places(record.checkpoints), strict=True)
        )
    ]
    table = Table(
        "values", "the values of these charts", heads, rows, frozenset(range(1, len(heads)))
    )
    lead = "Each dot is a checkpoint. The band is the 95% interval over the probe's sequences."
    return Section("training", "Over training", lead, charts=charts, tables=[table])


def _trends(record: RunRecord) -> Section:
    """Charts of the remaining metrics."""
    found = outline.tracks(record) if len(record.checkpoints) > 1 else []
    charts = _drawn(record, [t for t in found if t.name not in FIRST_TRENDS])
    return Section("trends", "More trends", folded=True, charts=charts)


def _drawn(record: RunRecord, tracks: Sequence[outline.Track]) -> list[Chart]:
    charts = [_track(record, t.name, t.points, bare=False) for t in tracks]
    return [c for c in charts if c is not None]


def _load(record: RunRecord) -> Section | None:
    layers = [x for x in record.newest.layers if x.load]
    if not layers:
        return None
    width = max(x.experts for x in layers)
    maps_of_cards = 1 + len({d for x in layers for d in x.domain_load})
    most = max(MAX_VALUES // (width * len(layers)) - maps_of_cards, 2)
    kept = [record.checkpoints[i] for i in spread(len(record.checkpoints), most)]
    frames = []
    for checkpoint in kept:
        by = {x.router: x for x in checkpoint.layers}
        frames.append(
            pack(v for x in layers for v in ratios(_load_of(by.get(x.router)), width))
        )  # fmt: skip
    names = [figures.layer_name(x.layer, x.router) for x in layers]
    data = {
        "scale": "ratio", "frames": _steps(kept), "rows": [f"layer {clean(n)}" for n in names],
        "short": [clean(n) for n in names], "columns": width, "packed": frames,
        "of": "expert", "unit": "× its fair share",
        "marks": [[*x.dead] for x in layers], "mark": "unused, by the dead-expert test",
        "suspects": [list(x.suspects) for x in layers],
        "suspect": "looks unused, but on too few tokens to decide",
        "masked": [[*x.off] for x in layers], "mask": "masked",
        **_experts(layers, width),
    }  # fmt: skip
    left_out = len(record.checkpoints) - len(kept)
    help = (
        "Rows are layers, columns are experts. The colour is the expert's load over its fair "
        "share. Arrow keys move from expert to expert; Enter opens an expert's card."
    )
    if left_out:
        help += f" {figures.plural(left_out, 'checkpoint')} between the ends are left out here."
    legend = ("none", "fair share", "8 times and more")
    shown = HeatMap("load", "load per expert", help, legend, data)
    return Section("load", "Load of the experts", maps=[shown])


def _load_of(layer: LayerRecord | None) -> Sequence[float | None] | None:
    return None if layer is None else layer.load


def _experts(layers: Sequence[LayerRecord], width: int) -> dict[str, object]:
    """Data of the experts' cards at the newest checkpoint: load by domain, and Fisher trace."""
    domains = list(dict.fromkeys(d for x in layers for d in x.domain_load))
    found: dict[str, object] = {
        "domains": [clean(d) for d in domains],
        "by_domain": [
            pack(v for x in layers for v in ratios(x.domain_load.get(d), width)) for d in domains
        ],
    }
    if any(x.fisher_trace for x in layers):
        found["fisher"] = pack(v for x in layers for v in _fisher_levels(x, width))
    return found


def _fisher_levels(layer: LayerRecord, width: int) -> list[int]:
    """Levels of each expert's Fisher trace over the mean of its layer."""
    traces = list(layer.fisher_trace or ())
    total = sum(t for t in traces if t is not None)
    mean = total / len(traces) if traces and total > 0 else None
    found = [ratio_level(None if t is None or mean is None else t / mean) for t in traces]
    return found + [ratio_level(None)] * (width - len(found))


def _routers(record: RunRecord) -> Section:
    ranked = judgement.worst_routers(record.newest, record.verdict)
    used = [n for n in ROUTER_METRICS if any(n in x.metrics for x, _ in ranked)]
    rows = [
        [
            Cell(figures.layer_name(x.layer, x.router), x.layer, clean(x.router)),
            Cell(clean(severity or outline.STATES.get(x.state, ""))),
            *(metric_cell(n, x.metrics.get(n)) for n in used),
        ]
        for x, severity in ranked
    ]
    heads = ("layer", "finding", *(figures.label(n) for n in used))
    table = Table("routers", "routers of the newest checkpoint, the worst first", heads, rows,
                  frozenset({0, *range(2, len(heads))}))  # fmt: skip
    lead = "Click a heading to sort by its column. Brackets hold 95% intervals."
    return Section("routers", "Routers", lead, tables=[table] if rows else [])


def _depth(record: RunRecord) -> Section:
    layers = sorted(record.newest.layers, key=lambda x: x.layer)
    charts = []
    for name in DEPTH_METRICS if len(layers) > 2 else ():
        drawn = chart(
            f"depth-{name}", figures.label(name), name, [float(i) for i in range(len(layers))],
            [f"layer {figures.layer_name(x.layer, x.router)}" for x in layers],
            [Series(figures.label(name), [x.metrics.get(name) for x in layers])],
        )  # fmt: skip
        charts += [drawn] if drawn else []
    return Section("depth", "Over depth", "From the first layer to the last.", charts=charts)


def _moves(record: RunRecord) -> Section:
    headings, found = outline.dynamics_tracks(record)
    rows = [
        [Cell(figures.label(t.name)), *(metric_cell(t.name, p) for p in t.points)] for t in found
    ]
    table = Table("moves", "Fisher-Rao motion of routing on the same probe",
                  ("", *headings), rows, frozenset(range(1, len(headings) + 1)))  # fmt: skip
    return Section("moves", "Between checkpoints", "How far routing moved.", folded=True,
                   tables=[table] if rows else [])  # fmt: skip


def _fisher(record: RunRecord) -> Section:
    ranked = judgement.worst_routers(record.newest, record.verdict)
    used = [n for n in FISHER_METRICS if any(n in x.metrics for x, _ in ranked)]
    rows = [
        [Cell(figures.layer_name(x.layer, x.router), x.layer),
         *(metric_cell(n, x.metrics.get(n)) for n in used)]
        for x, _ in ranked
    ]  # fmt: skip
    table = Table("fisher-routers", "Fisher heterogeneity per router",
                  ("layer", *(figures.label(n) for n in used)), rows,
                  frozenset(range(len(used) + 1)))  # fmt: skip
    lead = "Research metrics. The verdict does not use them, except with --policy paper."
    return Section("fisher", "Fisher heterogeneity", lead, folded=True,
                   tables=[table] if used and rows else [])  # fmt: skip
