"""The first screen of `moegeo check`: findings in the files, and how the weights moved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.text import Text

from moegeo_cli.records import Metric
from moegeo_cli.records.check import CheckedCheckpoint, CheckRecord
from moegeo_cli.reports import advice_text, figures, outline, summary
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.check_report import head_lines, note_lines
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import Page
from moegeo_cli.reports.screen import Numbers, Screen, advice_rows, by_layer

TREND = 10
MEANINGS = {
    "row_norm": "length of a router's rows",
    "stable_rank": "directions that a router's rows use",
    "bias_spread": "largest minus smallest selection bias",
    "expert_norm": "size of an expert's weights",
    "expert_distance": "1 independent, 0 copies",
    "experts_moved": "share of experts whose bytes changed",
}


def check_screen(page: Page, record: CheckRecord) -> Screen:
    """The first screen of a check record."""
    verdict = record.verdict
    main, notes = summary.main_findings(verdict)
    facts, how = head_lines(record)[:2]
    tried = verdict.checks if verdict else ()
    skipped = [c for c in tried if c.outcome == "skipped"]
    words = f"{len(tried) - len(skipped)} checks decided, {len(skipped)} undecided"
    return Screen(
        command="moegeo check",
        name=record.run.get("name", ""),
        right=figures.plural(len(record.checkpoints), "checkpoint"),
        identity=facts.partition(";")[0],
        status=clean(verdict.status) if verdict else "not judged",
        sentence=summary.verdict_sentence(verdict),
        detail=f"{words} · {how.removesuffix('; no model was built and no data was read')}",
        alerts=list(_alerts(record)),
        findings=main,
        notes=notes,
        reasons=[*summary.further_reasons(verdict), *note_lines(record)],
        advice=advice_rows(advice_text.to_do(record.interventions), page.width),
        undecided=skipped,
        numbers=_numbers(page, record.checkpoints),
        strips=list(_strips(page, record.newest)),
        more=[("--full", "every table"), ("-o check.html", "charts"),
              ("moegeo analyze RUN", "with a model")],
    )  # fmt: skip


def _alerts(record: CheckRecord) -> Iterator[tuple[str, str]]:
    for gap in outline.coverage_gaps(record.newest)[:1]:
        yield f"PARTIAL: {gap}", "bold red"
    for skipped in outline.skipped_checkpoints(record)[:1]:
        yield f"left out {skipped}", "yellow"


def _numbers(page: Page, checkpoints: Sequence[CheckedCheckpoint]) -> Numbers:
    """Means over layers: first value, newest value, and the trend between them."""
    many = len(checkpoints) > 1
    rows = []
    for name, meaning in MEANINGS.items():
        found = [c.metrics.get(name) for c in checkpoints]
        if all(m is None or m.value is None for m in found):
            continue
        shown = [found[0], found[-1]] if many else [found[-1]]
        cells = [_value(page, name, m) for m in shown]
        if many:
            values = [None if m is None else m.value for m in found]
            cells.append(sparkline(values, page.glyphs, width=TREND))
        rows.append((figures.label(name), *cells, meaning))
    heads = ("first", "now", "trend") if many else ("value",)
    return Numbers(
        ("", *heads, "means over layers"), rows, ("dim", "bold", "cyan") if many else ("bold",)
    )


def _value(page: Page, name: str, metric: Metric | None) -> str:
    if metric is None or metric.value is None:
        return page.glyphs.dash
    return figures.number(metric.value, figures.decimals(name))


def _strips(page: Page, newest: CheckedCheckpoint) -> Iterator[Text]:
    """Charts of two metrics over the layers."""
    layers = [x for x in newest.layers if x.layer is not None]
    for name in ("row_norm", "expert_norm"):
        found = [x.metrics.get(name) for x in layers]
        values = [None if m is None else m.value for m in found]
        known = [v for v in values if v is not None]
        if len(known) > 1:
            low, high = (figures.number(v) for v in (min(known), max(known)))
            where = f"layers {layers[0].layer}-{layers[-1].layer}"
            yield by_layer(page, where, values, f"{figures.label(name)} {low} to {high}")
