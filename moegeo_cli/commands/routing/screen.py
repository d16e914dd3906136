"""The first screen of `moegeo routing`: what the choice of experts depends on."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from moegeo_cli.commands.routing import outline
from moegeo_cli.commands.routing.record import RoutingRecord
from moegeo_cli.records import Metric
from moegeo_cli.reports import figures
from moegeo_cli.reports.advice_text import to_do
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import probe_words
from moegeo_cli.reports.page import Page
from moegeo_cli.reports.screen import Numbers, Screen, advice_rows, by_layer

MEANINGS = {
    "geometry": "similar states, similar experts; at most 1",
    "response_relative": "× the response to a random direction",
    "constant_share": "of the logits is the same for all tokens",
    "overlap_unrelated": "share of experts, of two unrelated tokens",
    "vocabulary_overlap": "more if the token is the same",
    "overlap_sequence": "more if the sequence is the same",
    "domain_gap": "more if the domain is the same",
}
LABELS = {
    "geometry": "geometry", "response_relative": "shared direction",
    "constant_share": "constant share", "overlap_unrelated": "experts in common",
    "vocabulary_overlap": "  same token", "overlap_sequence": "  same sequence",
    "domain_gap": "  same domain",
}  # fmt: skip
STRIPS = {
    "response_relative": "response to the shared direction", "vocabulary_overlap": "same token",
}  # fmt: skip


def routing_screen(page: Page, record: RoutingRecord) -> Screen:
    """The first screen of a routing record."""
    main = [f for f in record.findings if f.severity != "info"]
    shape = sorted({(x.experts, x.top_k) for x in record.layers}, key=str)
    words = [f"{e} experts" + (f", top {k}" if k else "") for e, k in shape[:1]]
    probe = f"probe {probe_words(record.probe)}"
    return Screen(
        command="moegeo routing",
        name=record.name,
        right=figures.plural(len(record.layers), "router"),
        identity=" · ".join([clean(record.model_type), *words, probe]),
        status=main[0].severity if main else "",
        sentence=_sentence(record),
        alerts=[(f"PARTIAL: {gap}", "bold red") for gap in outline.gaps(record)[:1]],
        findings=main,
        notes=[f for f in record.findings if f.severity == "info"],
        reasons=[*_second_model(record), *map(clean, record.notes)],
        advice=advice_rows(to_do(record.interventions), page.width),
        undecided=[c for c in record.checks if c.outcome == "skipped"],
        numbers=_numbers(record),
        strips=list(_strips(page, record)),
        more=[("--full", "every table"), ("-o routing.html", "charts"),
              ("--generate 64", "its own continuations")],
    )  # fmt: skip


def _sentence(record: RoutingRecord) -> str:
    """One sentence on what the choice of experts depends on most."""
    shares = {
        "the token itself": _value(record.metrics.get("vocabulary_overlap")),
        "the sequence": _value(record.metrics.get("overlap_sequence")),
        "the domain": _value(record.metrics.get("domain_gap")),
    }
    known = {name: value for name, value in shares.items() if value is not None}
    if not known:
        return "What routing depends on could not be measured."
    name, value = max(known.items(), key=lambda item: item[1])
    if value <= 0:
        return "Routing depends neither on the token nor on its sequence or domain."
    return f"Routing depends most on {name}: {value:.0%} more experts in common."


def _second_model(record: RoutingRecord) -> list[str]:
    """One sentence on how similarly a second model routes."""
    other = record.other
    if other is None:
        return []
    found = [_value(x.metrics.get("mantel")) for x in other.layers]
    values = [v for v in found if v is not None]
    if not values:
        return [f"compared with {clean(other.name)}: no similarity could be measured"]
    mean = sum(values) / len(values)
    return [
        f"compared with {clean(other.name)}: mean similarity of routing {mean:.2f}, lowest "
        f"{min(values):.2f} (1 is the same, 0 unrelated)"
    ]


def _numbers(record: RoutingRecord) -> Numbers:
    """Means over layers, with the lowest and highest layer."""
    rows = []
    for name, meaning in MEANINGS.items():
        values = _by_layer(record, name)
        known = [v for v in values if v is not None]
        if known:
            cells = (sum(known) / len(known), min(known), max(known))
            rows.append((LABELS[name], *(figures.number(v, 2) for v in cells), meaning))
    return Numbers(("", "mean", "least", "most", "over layers"), rows, ("bold", "dim", "dim"))


def _strips(page: Page, record: RoutingRecord) -> Iterator[Text]:
    for name, words in STRIPS.items():
        values = _by_layer(record, name)
        if sum(v is not None for v in values) > 1:
            where = f"layers {record.layers[0].layer}-{record.layers[-1].layer}"
            yield by_layer(page, where, values, words)


def _by_layer(record: RoutingRecord, name: str) -> list[float | None]:
    if name != "geometry":
        return [_value(layer.metrics.get(name)) for layer in record.layers]
    wanted = ("across", "cosine", "distribution")
    found = [
        next((g.spearman for g in x.geometry if (g.pairs, g.hidden, g.usage) == wanted), None)
        for x in record.layers
    ]
    return [_value(metric) for metric in found]


def _value(metric: Metric | None) -> float | None:
    return None if metric is None else metric.value
