"""The first screen of a run: its verdict, five metrics, and the load of its worst routers."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.text import Text

from moegeo_cli.records import LayerRecord, RunRecord
from moegeo_cli.reports import advice_text, figures, judgement, outline, screen, summary
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page
from moegeo_cli.reports.screen import GAP, SIGNS, Numbers, Screen, advice_rows, by_layer, cut

MAX_STRIPS = 3
MARKS = 32  # characters of one strip
TREND = 10


def print_first_screen(record: RunRecord, console: Console) -> None:
    """Print the first screen.

    Args:
        record: the run, judged or not.
        console: the console to print on; the screen fits its width, colours and encoding.
    """
    screen.print_screen(console, record, run_screen)


def render(record: RunRecord) -> str:
    """The first screen as plain text."""
    return screen.render_screen(record, print_first_screen)


def run_screen(page: Page, record: RunRecord) -> Screen:
    """The first screen of a run record."""
    verdict = record.verdict
    main, notes = summary.main_findings(verdict)
    return Screen(
        command="moegeo",
        name=record.run.get("name", ""),
        right=outline.checkpoint_words(record),
        identity=outline.identity(record),
        status=clean(verdict.status) if verdict else "not judged",
        sentence=summary.verdict_sentence(verdict),
        detail=summary.axis_words(verdict),
        alerts=[*_alerts(page, record)],
        findings=main,
        notes=notes,
        reasons=summary.further_reasons(verdict),
        advice=advice_rows(advice_text.to_do(record.interventions), page.width),
        undecided=[c for c in verdict.checks if c.outcome == "skipped"] if verdict else [],
        numbers=_numbers(page, record),
        strips=_strips(page, record),
        more=_more(record),
    )


def _alerts(page: Page, record: RunRecord) -> Iterator[tuple[str, str]]:
    gaps = outline.coverage_gaps(record.newest)
    if gaps:
        yield f"PARTIAL: {gaps[0]}", "bold red"
    skipped = outline.skipped_checkpoints(record)
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        yield cut(page, f"left out {skipped[0]}", page.width - len(more), 1)[0] + more, "yellow"


def _numbers(page: Page, record: RunRecord) -> Numbers:
    """Five metrics: first value, newest value, trend, and meaning."""
    many = len(record.checkpoints) > 1
    rows = []
    for number in summary.numbers(record):
        points = number.track.points
        values = []
        for metric in (points[0], points[-1])[0 if many else 1 :]:
            places = figures.decimals(number.track.name)
            value = None if metric is None else metric.value
            values.append(page.glyphs.dash if value is None else figures.number(value, places))
        if many:
            values.append(sparkline(
                [p.value if p else None for p in points], page.glyphs, width=TREND,
                floor=number.track.noise,
            ))  # fmt: skip
        label = figures.label(number.track.name).removesuffix(", worst router")
        rows.append((label, *values, number.meaning))
    heads = ("first", "now", "trend") if many else ("value",)
    styles = ("dim", "bold", "cyan") if many else ("bold",)
    return Numbers(("", *heads, _probe(record)), rows, styles)


def _probe(record: RunRecord) -> str:
    source = outline.probe_source(record.probe)
    tokens = figures.count(record.probe.get("tokens"))
    if source == outline.BUNDLED:
        return f"bundled text, not yours: {tokens} tokens"
    return f"probe: {source}, {tokens} tokens"


def _strips(page: Page, record: RunRecord) -> list[Text]:
    """A chart of collapse over the layers, and the load per expert of the worst routers."""
    ranked = judgement.worst_routers(record.newest, record.verdict)
    shown = [(layer, severity) for layer, severity in ranked if layer.load or layer.state != "ok"]
    if not shown:
        return []
    lines = []
    if len(record.newest.layers) > MAX_STRIPS:
        lines.append(_by_layer(page, record))
    kept = shown[: MAX_STRIPS - len(lines)]
    lines += [_strip(page, layer, severity) for layer, severity in kept]
    blocks = page.glyphs
    words = f"load: {blocks.blocks[3]} fair  {blocks.blocks[7]} twice or more  {blocks.none} none"
    most = max(layer.experts for layer, _ in kept)
    if most > MARKS:
        words += f"; {most} experts, sorted, in {MARKS} marks"
    return [*lines, page.text(words, "dim")]


def _by_layer(page: Page, record: RunRecord) -> Text:
    """A chart of collapse from the first layer to the last."""
    layers = sorted(record.newest.layers, key=lambda layer: layer.layer)
    found = [layer.metrics.get("collapse") for layer in layers]
    values = [metric.value if metric is not None else None for metric in found]
    known = [v for v in values if v is not None]
    words = ""
    if known:
        low, high = (figures.number(v) for v in (min(known), max(known)))
        words = f"collapse {low} to {high}" if low != high else f"collapse {low}"
    return by_layer(page, f"layers {layers[0].layer}-{layers[-1].layer}", values, words)


def _strip(page: Page, layer: LayerRecord, severity: str | None) -> Text:
    name = figures.layer_name(layer.layer, layer.router)
    line = Text(f"{SIGNS.get(severity or '', ''):<{GAP}}", STYLES.get(severity or "", ""))
    line.append(f"layer {name:<4} ", STYLES.get(severity or "", "bold"))
    if layer.state != "ok":
        return line.append(outline.STATES.get(layer.state, layer.state), "bold red")
    line.append(page.strip(layer.load, MARKS))
    metric = layer.metrics.get("effective_experts")
    if metric is not None and metric.value is not None:
        count = figures.number(metric.value, figures.decimals("effective_experts"))
        words = f"  {count} of {layer.choices} experts carry the load"
        line.append(words if line.cell_len + len(words) <= page.width else "", "dim")
    return line


def _more(record: RunRecord) -> list[tuple[str, str]]:
    """Further options and commands, each with its purpose."""
    items = [("--full", "every table"), ("-o run.html", "charts")]
    findings = judgement.findings(record.verdict)
    if findings:
        items.append((f"moegeo explain {clean(findings[0].id)}", ""))
    if record.verdict is not None and record.verdict.performance == "undetermined":
        items.append(("--reference RUN", "judge the loss"))
    return items
