"""The first screen of `moegeo compare`: which run is healthier, why, and five metrics of both."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from moegeo_cli.records.comparison import ComparisonRecord, LayerPair, MatchedPair
from moegeo_cli.reports import figures, judgement
from moegeo_cli.reports.comparison_text import favoured, headline, pair_name, unmatched_words
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import Page
from moegeo_cli.reports.screen import Numbers, Screen, by_layer, shorten

MAX_LAYERS = 3
MEANINGS = {
    "loss": "nats; lower is better",
    "collapse_worst": "0 even, 1 most uneven",
    "effective_experts_worst": "in use in the worst layer",
    "dead_experts": "unused on this probe",
    "fsi": "0 unsure, 1 sure of one",
}


def comparison_screen(page: Page, record: ComparisonRecord) -> Screen:
    """The first screen of a comparison record."""
    pair = record.pairs[-1] if record.pairs else None
    sides = [
        f"{letter} {_name(run.name)}: {shorten(clean(run.status or 'not judged'), 16)}"
        for letter, run in (("A", record.run_a), ("B", record.run_b))
    ]
    where = f"at {pair_name(record, pair)}" if pair else f"by {clean(record.matched_by)}"
    missing = unmatched_words(record)
    alerts = [(f"without a match: {missing[0]}", "yellow")] if missing else []
    if pair is None:
        alerts.insert(0, (f"no two checkpoints match by {clean(record.matched_by)}", "bold red"))
    return Screen(
        command="moegeo compare",
        name=f"{_name(record.run_a.name)} and {_name(record.run_b.name)}",
        right=figures.plural(len(record.pairs), "matched pair"),
        identity=" · ".join(sides),
        sentence=headline(record),
        detail=f"{where}, paired by the probe's sequences" if pair else "",
        alerts=alerts,
        reasons=[clean(record.reason), *map(clean, record.notes)],
        advice=_advice(record),
        numbers=_numbers(page, pair),
        strips=list(_strips(page, pair)) if pair else [],
        more=[("--full", "every table"), ("-o compare.html", "charts"),
              ("moegeo explain collapse", "")],
    )  # fmt: skip


def _name(name: str) -> str:
    return shorten(clean(name), 24)


def _advice(record: ComparisonRecord) -> list[tuple[str, str]]:
    if record.healthier is None:
        return []
    worse = record.run_b if record.healthier == "a" else record.run_a
    return [("do", f"moegeo analyze {_name(worse.name)} shows what to change")]


def _numbers(page: Page, pair: MatchedPair | None) -> Numbers:
    """Five metrics of both runs at their newest pair, and the side that is better."""
    rows = []
    for name, meaning in MEANINGS.items():
        found = pair.differences.get(name) if pair else None
        if found is None:
            continue
        places = figures.decimals(name)
        cells = [
            page.glyphs.dash if m.value is None else figures.number(m.value, places)
            for m in (found.a, found.b)
        ]
        gap = page.estimate(name, found.difference).plain
        side = favoured(found)
        better = "" if side == "differs" else side.upper()
        rows.append(
            (figures.label(name).removesuffix(", worst router"), *cells, gap, better, meaning)
        )
    return Numbers(
        ("", "A", "B", "B − A", "better", ""), rows, ("", "", "dim", "bold")
    ) if rows else Numbers(("", ""), (), ())  # fmt: skip


def _strips(page: Page, pair: MatchedPair) -> Iterator[Text]:
    """A chart of the difference of collapse over the layers, and the layers where it is largest."""
    layers = sorted((x for x in pair.layers if "collapse" in x.differences), key=lambda x: x.layer)
    if not layers:
        return
    gaps = [_gap(layer) for layer in layers]
    if len(layers) > 1:
        name = f"layers {judgement.layer_list([x.layer for x in layers])}"
        yield by_layer(page, name[:16], gaps, "difference of collapse")
    known = sorted(
        (x for x in layers if _gap(x) is not None), key=lambda x: (-(_gap(x) or 0), x.layer)
    )
    for layer in known[: MAX_LAYERS - 1]:
        found = layer.differences["collapse"]
        a, b = (figures.number(m.value or 0.0) for m in (found.a, found.b))
        line = Text(f"layer {figures.layer_name(layer.layer, layer.router)}  ", "bold")
        yield line.append(page.text(f"collapse {a} in A, {b} in B", "dim"))


def _gap(layer: LayerPair) -> float | None:
    value = layer.differences["collapse"].difference.value
    return None if value is None else abs(value)
