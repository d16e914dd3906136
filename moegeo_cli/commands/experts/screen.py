"""The first screen of `moegeo experts`: are experts similar, and which to merge or prune."""

from __future__ import annotations

from collections.abc import Iterator

from rich.text import Text

from moegeo_cli.commands.experts import outline
from moegeo_cli.commands.experts.record import ExpertLayerRecord, ExpertsRecord
from moegeo_cli.reports import figures
from moegeo_cli.reports.advice_text import to_do
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.outline import probe_words
from moegeo_cli.reports.page import Page
from moegeo_cli.reports.screen import Numbers, Screen, advice_rows, by_layer

SIMILAR = 0.5  # alignment of experts with similar functions; the limit of the rule is higher
MAX_SHOWN = 3
MEANINGS = {
    "alignment": "1 the same function, 0 unrelated",
    "overlap_input": "of two experts' inputs",
    "overlap_output": "of two experts' outputs",
    "asymmetry": "overlap of inputs − |alignment|",
}


def experts_screen(page: Page, record: ExpertsRecord) -> Screen:
    """The first screen of an experts record."""
    main = [f for f in record.findings if f.severity != "info"]
    where = clean(record.model_type)
    shape = sorted({(x.experts, x.top_k) for x in record.layers}, key=str)
    words = [f"{e} experts" + (f", top {k}" if k else "") for e, k in shape[:1]]
    return Screen(
        command="moegeo experts",
        name=record.name,
        right=figures.plural(len(record.layers), "layer"),
        identity=" · ".join([where, *words, f"probe {probe_words(record.probe)}"]),
        status=main[0].severity if main else "",
        sentence=_sentence(record),
        detail=_pairs(record),
        alerts=[(f"PARTIAL: {gap}", "bold red") for gap in outline.gaps(record)[:1]],
        findings=main,
        notes=[f for f in record.findings if f.severity == "info"],
        reasons=[*_merges(record), *_prunes(record)],
        advice=_advice(page, record),
        undecided=[c for c in record.checks if c.outcome == "skipped"],
        numbers=_numbers(page, record),
        strips=list(_strips(page, record)),
        more=[("--full", "every table"), ("-o experts.html", "charts"),
              ("moegeo explain alignment", "")],
    )  # fmt: skip


def _sentence(record: ExpertsRecord) -> str:
    """One sentence on whether experts have similar functions."""
    known = [c.alignment.value for c in record.merge_candidates if c.alignment.value is not None]
    if not known:
        return "No pair of experts could be compared as functions."
    count = sum(value >= SIMILAR for value in known)
    if not count:
        return f"No two experts have similar functions: the highest alignment is {max(known):.2f}."
    pairs = figures.plural(count, "pair")
    return f"{pairs} of experts have similar functions (alignment ≥ {SIMILAR})."


def _pairs(record: ExpertsRecord) -> str:
    decided = [layer for layer in record.layers if layer.coexist is not None]
    if not decided:
        return ""
    both = sum(bool(layer.coexist) for layer in decided)
    return (
        f"inputs overlap more than functions align in {both} of "
        f"{figures.plural(len(decided), 'layer')}; random experts show this too"
    )


def _merges(record: ExpertsRecord) -> list[str]:
    found = [c for c in record.merge_candidates if c.above_null][:MAX_SHOWN]
    pairs = [f"layer {outline.candidate_layer(c)}: {'+'.join(map(str, c.experts))}" for c in found]
    if not pairs:
        return ["no pair is more similar than chance"]
    return [f"merge first: {', '.join(pairs)}"]


def _prunes(record: ExpertsRecord) -> list[str]:
    found = record.prune_candidates[:MAX_SHOWN]
    experts = [
        f"layer {outline.candidate_layer(c)}: {c.expert} (score {figures.number(c.score, 2)})"
        for c in found
    ]
    words = f"prune first: {', '.join(experts)}; the mean expert has score 1"
    return [words] if experts else []


def _advice(page: Page, record: ExpertsRecord) -> list[tuple[str, str]]:
    rows = advice_rows(to_do(record.interventions), page.width)
    if record.verification is None:
        return [
            *rows,
            ("next", "--verify 4 measures the loss after merging, then pruning, the first 4"),
        ]
    trials = [t for t in record.verification.trials if t.choice == "ranking"] or list(
        record.verification.trials
    )
    count = record.verification.count
    return [
        *rows, *((outline.action(t, count)[:6], f"loss {outline.change(t)}") for t in trials[:2])
    ]  # fmt: skip


def _numbers(page: Page, record: ExpertsRecord) -> Numbers:
    """Each metric over the layers, with its value by chance."""
    rows = []
    for name, _ in outline.COLUMNS:
        found = [layer.metrics[name] for layer in record.layers if name in layer.metrics]
        values = [m.value for m in found if m.value is not None]
        nulls = [m.null_value for m in found if m.null_value is not None]
        if not values:
            continue
        cells = [figures.number(v) for v in (sum(values) / len(values), min(values), max(values))]
        chance = f"{abs(sum(nulls) / len(nulls)):.2f}" if nulls else ""
        rows.append((figures.label(name), *cells, chance, MEANINGS[name]))
    heads = ("", "mean", "least", "most", "chance", "over layers")
    return Numbers(heads, rows, ("bold", "", "", "dim"))


def _strips(page: Page, record: ExpertsRecord) -> Iterator[Text]:
    for name in ("alignment", "overlap_input"):
        values = [_value(layer, name) for layer in record.layers]
        if sum(v is not None for v in values) > 1:
            where = f"layers {record.layers[0].layer}-{record.layers[-1].layer}"
            yield by_layer(page, where, values, figures.label(name))


def _value(layer: ExpertLayerRecord, name: str) -> float | None:
    metric = layer.metrics.get(name)
    return None if metric is None else metric.value
