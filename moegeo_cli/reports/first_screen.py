"""The default report on a terminal: one screen of 24 lines at 80 columns, without a manual.

The verdict in words, why, what to do and how to check it, five numbers, the load of the worst
routers. Everything else is in the full report (`terminal`).
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from moegeo_cli.records import Check, Finding, Intervention, LayerRecord, RunRecord
from moegeo_cli.reports import figures, judgement, outline, summary
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page

LINES = 24
WIDTH = 100  # a line longer than this is hard to follow
SIGNS = {"failing": "!!", "watch": "!", "info": "i"}
MOST_REASONS = 2  # findings that are told with their numbers; the others by name
MOST_STRIPS = 3
MARKS = 32  # of one strip
TREND = 10
GAP = 3  # characters before a continued line


def print_first_screen(record: RunRecord, console: Console) -> None:
    """Print the first screen.

    Args:
        record: the run, judged or not.
        console: where to; the screen fits its width, colours and encoding.
    """
    page = Page(console)
    page.width = min(page.width, WIDTH)
    head = [*_head(page, record), Text(), *_verdict(page, record)]
    foot = [*_numbers(page, record), *_strips(page, record), _more(page, record)]
    room = LINES - len(head) - len(foot) - 1
    for line in (*head, *_reasons(page, record, room), Text(), *foot):
        page.show(line)


def render(record: RunRecord) -> str:
    """The first screen as plain text."""
    file = io.StringIO()
    console = Console(file=file, width=80, color_system=None, force_terminal=False)
    print_first_screen(record, console)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _head(page: Page, record: RunRecord) -> Iterator[Text]:
    steps = outline.checkpoint_words(record)
    room = page.width - cell_len(steps) - len("moegeo ") - GAP
    line = Text("moegeo ", "dim").append(
        page.glyphs.text(_short(clean(record.run.get("name", "")), room)), "bold"
    )
    line.append(" " * max(page.width - line.cell_len - cell_len(steps), GAP))
    yield line.append(page.glyphs.text(steps))
    yield page.text(_cut(page, outline.identity(record), page.width, 1)[0], "dim")


def _verdict(page: Page, record: RunRecord) -> Iterator[Text]:
    verdict = record.verdict
    status = clean(verdict.status) if verdict else "not judged"
    style = STYLES.get(status, "bold")
    line = Text().append(f" {status.upper()} ", f"{style} reverse").append("  ")
    yield line.append(page.text(summary.verdict_sentence(verdict), "bold"))
    if verdict is not None:
        yield page.text(_cut(page, summary.axis_words(verdict), page.width, 1)[0], "dim")
    gaps = outline.coverage_gaps(record.newest)
    if gaps:
        yield page.text(_cut(page, f"PARTIAL: {gaps[0]}", page.width, 1)[0], "bold red")
    skipped = outline.skipped_checkpoints(record)
    if skipped:
        more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
        words = _cut(page, f"left out {skipped[0]}", page.width - len(more), 1)[0] + more
        yield page.text(words, "yellow")


def _reasons(page: Page, record: RunRecord, room: int) -> list[Text]:
    """Why, and what to do about it, in so many lines."""
    main, notes = summary.main_findings(record.verdict)
    advice = list(_advice(page, outline.to_do(record.interventions)))
    named = _named(page, main[MOST_REASONS:], "also")
    further = summary.further_reasons(record.verdict)
    left = room - len(advice) - len(named) - bool(notes)
    lines: list[Text] = []
    for place, finding in enumerate(main[:MOST_REASONS]):
        rest = len(main[place + 1 : MOST_REASONS])
        lines += _finding(page, finding, left - len(lines) - rest)
    for reason in further:
        cut = _cut(page, reason, page.width - GAP, min(left - len(lines), 2))
        lines += [
            page.text(f"{'' if i else page.glyphs.bullet:<{GAP}}{w}") for i, w in enumerate(cut)
        ]
    lines += [*advice, *named]
    if len(notes) <= room - len(lines):
        lines += [_headed(page, note, clean(note.message)) for note in notes]
    else:
        lines += _named(page, notes, "notes")
    undecided = (
        [c for c in record.verdict.checks if c.outcome == "skipped"] if record.verdict else []
    )
    return [*lines, *_named(page, undecided, "open")][:room]


def _finding(page: Page, finding: Finding, room: int) -> Iterator[Text]:
    """A finding in a plain sentence, and its numbers where there are lines for them."""
    yield _headed(page, finding, summary.headline(finding), "bold")
    for words in _cut(page, clean(finding.message), page.width - GAP, min(room - 1, 2)):
        yield page.text(" " * GAP + words)


def _headed(page: Page, finding: Finding, words: str, weight: str = "") -> Text:
    """What a finding says in one line, between its sign and its id."""
    style = STYLES.get(finding.severity, "bold")
    where = clean(finding.id)
    if finding.layers:
        listed = f"layer{'s' if len(finding.layers) > 1 else ''} "
        listed += judgement.layer_list(finding.layers)
        where += f" {listed}" if len(listed) <= GAP * 8 else f" {len(finding.layers)} layers"
    said = _cut(page, words, page.width - GAP - len(where) - GAP, 1)[0]
    line = Text(f"{SIGNS.get(finding.severity, '!'):<{GAP}}", style)
    line.append(page.text(said, weight))
    line.append(" " * max(page.width - line.cell_len - len(where), 1))
    return line.append(where, "dim")


def _advice(page: Page, items: Sequence[Intervention]) -> Iterator[Text]:
    """One thing to do, and how to see that it worked."""
    if not items:
        return
    item = items[0]
    title, key = clean(item.title), outline.key_words(item.key)
    both = f"{title}: {key}"
    if item.key.key is None:
        rows = [("do", title)]
    elif cell_len(both) <= page.width - 7:
        rows = [("do", both)]
    else:
        rows = [("do", title), ("set", key)]
    for name, words in (*rows, ("check", clean(item.check))):
        if words:
            line = Text(f"{name:<7}", "bold cyan")
            yield line.append(page.text(_cut(page, words, page.width - 7, 1)[0]))


def _named(page: Page, findings: Sequence[Finding | Check], word: str) -> list[Text]:
    """Findings by name alone, in one line."""
    if not findings:
        return []
    names = [f"{clean(f.id)} {clean(f.name)}" for f in findings]
    room = page.width - 7
    shown = len(names)
    while shown > 1 and len(_listed(names, shown)) > room:
        shown -= 1
    line = Text(f"{word:<7}", "dim")
    return [line.append(page.text(_cut(page, _listed(names, shown), room, 1)[0], "dim"))]


def _listed(names: Sequence[str], shown: int) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest else "")


def _numbers(page: Page, record: RunRecord) -> Iterator[Text]:
    """Five numbers: the first and the newest value, how it came there, what it says."""
    found = summary.numbers(record)
    many = len(record.checkpoints) > 1
    ends = ("first", "now") if many else ("", "value")
    rows: list[tuple[str, ...]] = [("", *ends, "trend" if many else "", _probe(record))]
    for number in found:
        points = number.track.points
        values = [] if many else [""]
        for metric in (points[0], points[-1])[0 if many else 1 :]:
            places = figures.decimals(number.track.name)
            value = None if metric is None else metric.value
            values.append(page.glyphs.dash if value is None else figures.number(value, places))
        trend = sparkline(
            [p.value if p else None for p in points], page.glyphs, width=TREND,
            floor=number.track.noise,
        ) if many else ""  # fmt: skip
        label = figures.label(number.track.name).removesuffix(", worst router")
        rows.append((label, *values, trend, number.meaning))
    widths = [max(cell_len(row[i]) for row in rows) for i in range(4)]
    for place, (name, first, now, trend, meaning) in enumerate(rows):
        line = Text(f"{name:<{widths[0]}}", "bold")
        line.append(f"  {first:>{widths[1]}}" if many else "", "dim")
        line.append(f"  {now:>{widths[2]}}", "dim" if not place else "bold")
        line.append(f"  {trend:<{widths[3]}}" if many else "", "cyan" if place else "dim")
        room = page.width - line.cell_len - 2
        yield line.append(page.text(f"  {meaning}" if cell_len(meaning) <= room else "", "dim"))


def _probe(record: RunRecord) -> str:
    source = outline.probe_source(record.probe)
    tokens = figures.count(record.probe.get("tokens"))
    if source == outline.BUNDLED:
        return f"bundled text, not yours: {tokens} tokens"
    return f"probe: {source}, {tokens} tokens"


def _strips(page: Page, record: RunRecord) -> list[Text]:
    """Load imbalance over the layers, and the load of the worst routers' experts."""
    ranked = judgement.worst_routers(record.newest, record.verdict)
    shown = [(layer, severity) for layer, severity in ranked if layer.load or layer.state != "ok"]
    if not shown:
        return []
    lines = []
    if len(record.newest.layers) > MOST_STRIPS:
        lines.append(_by_layer(page, record))
    kept = shown[: MOST_STRIPS - len(lines)]
    lines += [_strip(page, layer, severity) for layer, severity in kept]
    blocks = page.glyphs
    words = f"load: {blocks.blocks[3]} fair  {blocks.blocks[7]} twice or more  {blocks.none} none"
    most = max(layer.experts for layer, _ in kept)
    if most > MARKS:
        words += f"; {most} experts, sorted, in {MARKS} marks"
    return [*lines, page.text(words, "dim")]


def _by_layer(page: Page, record: RunRecord) -> Text:
    """Collapse from the first layer to the last; a mark is the worst of those it stands for."""
    layers = sorted(record.newest.layers, key=lambda layer: layer.layer)
    found = [layer.metrics.get("collapse") for layer in layers]
    values = [metric.value if metric is not None else None for metric in found]
    together = -(-len(values) // 48)
    worst = [
        max((v for v in values[i : i + together] if v is not None), default=None)
        for i in range(0, len(values), together)
    ]
    known = [v for v in values if v is not None]
    line = Text(f"layers {layers[0].layer}-{layers[-1].layer}  ", "bold")
    line.append(sparkline(worst, page.glyphs, width=len(worst)), "cyan")
    if known:
        low, high = (figures.number(v) for v in (min(known), max(known)))
        words = f"  collapse {low} to {high}" if low != high else f"  collapse {low}"
        line.append(words if line.cell_len + len(words) <= page.width else "", "dim")
    return line


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


def _more(page: Page, record: RunRecord) -> Text:
    """What else the same command can do, as far as a line holds it."""
    items = [("--full", "every table"), ("-o run.html", "charts")]
    findings = judgement.findings(record.verdict)
    if findings:
        items.append((f"moegeo explain {clean(findings[0].id)}", ""))
    if record.verdict is not None and record.verdict.performance == "undetermined":
        items.append(("--reference RUN", "judge the loss"))
    line = Text("more  ", "dim")
    for place, (command, why) in enumerate(items):
        mark = page.glyphs.text(" · ") if place else ""
        if line.cell_len + len(f"{mark}{command} {why}") <= page.width:
            line.append(mark, "dim").append(command, "cyan").append(f" {why}".rstrip(), "dim")
    return line


def _cut(page: Page, text: str, width: int, most: int) -> list[str]:
    """Text in at most so many lines: whole clauses, else whole words; never half a number."""
    if most < 1 or width < 1:
        return []
    lines = _wrapped(page, text, width) or [""]
    if len(lines) <= most:
        return lines
    kept = " ".join(lines[:most])
    ends = [m.start() for m in re.finditer(r"[;.,:] ", kept)]
    if ends and ends[-1] >= len(kept) // 3:
        kept = kept[: ends[-1]]
    return _wrapped(page, kept.rstrip(";.,: "), width)[:most]


def _wrapped(page: Page, text: str, width: int) -> list[str]:
    """Lines by the cells that characters take, which for some are two."""
    return [line.plain.rstrip() for line in Text(text).wrap(page.console, width)]


def _short(text: str, width: int) -> str:
    """A name that is too long, without its middle."""
    if cell_len(text) <= width:
        return text
    half = max(width - 2, 2) // 2
    tail = set_cell_size(text[::-1], half)[::-1]
    return f"{set_cell_size(text, half).rstrip()}..{tail.strip()}"
