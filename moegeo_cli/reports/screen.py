"""A report on one screen of 24 lines at 80 columns: what every command prints first.

The answer in words, why, what to do next, a few numbers with their meaning, a strip of layers.
What a command fills in is a `Screen`; everything else is in its full report.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from moegeo_cli.records import Check, Finding, Intervention
from moegeo_cli.reports import judgement, outline, summary
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page

R = TypeVar("R")
LINES = 24
WIDTH = 100  # a line longer than this is hard to follow
SIGNS = {"failing": "!!", "watch": "!", "info": "i"}
MOST_REASONS = 2  # findings that are told with their numbers; the others by name
GAP = 3  # characters before a continued line


@dataclass(frozen=True, slots=True)
class Numbers:
    """A table of numbers.

    Attributes:
        heads: over the label, each column and the meaning.
        rows: a label, a text for each column, and what the number means.
        styles: of the columns; "cyan" is a chart.
    """

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    styles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Screen:
    """What one screen says.

    Attributes:
        command: and the name of what it is about.
        right: at the end of the first line.
        identity: of the model, in one line.
        status: a verdict's word; "" for none.
        sentence: the answer.
        detail: one line below it.
        alerts: lines that must not be missed, each with its style.
        findings: that make the answer, the worst first.
        notes: findings that ask for nothing.
        reasons: further sentences that say why.
        advice: rows of a word and what to do.
        undecided: checks that could not be decided.
        numbers: a table.
        strips: charts of layers.
        more: what else the command can do, and why.
    """

    command: str
    name: str
    right: str
    identity: str
    sentence: str
    numbers: Numbers
    status: str = ""
    detail: str = ""
    alerts: Sequence[tuple[str, str]] = ()
    findings: Sequence[Finding] = ()
    notes: Sequence[Finding] = ()
    reasons: Sequence[str] = ()
    advice: Sequence[tuple[str, str]] = ()
    undecided: Sequence[Check] = ()
    strips: Sequence[Text] = field(default_factory=tuple)
    more: Sequence[tuple[str, str]] = ()


def print_screen(console: Console, record: R, fill: Callable[[Page, R], Screen]) -> None:
    """Print a record's screen.

    Args:
        console: where to; the screen fits its width, colours and encoding.
        record: what was found.
        fill: makes its screen.
    """
    page = Page(console)
    page.width = min(page.width, WIDTH)
    said = fill(page, record)
    head = [*_head(page, said), Text(), *_answer(page, said)]
    foot = [*_numbers(page, said.numbers), *said.strips, _more(page, said.more)]
    room = LINES - len(head) - len(foot) - 1
    for line in (*head, *_reasons(page, said, room), Text(), *foot):
        page.show(line)


def render_screen(record: R, show: Callable[[R, Console], None]) -> str:
    """A screen as plain text."""
    file = io.StringIO()
    show(
        record,
        Console(file=file, force_jupyter=False, width=80, color_system=None, force_terminal=False),
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def advice_rows(items: Sequence[Intervention], width: int) -> list[tuple[str, str]]:
    """One thing to do, and how to see that it worked.

    Args:
        items: what to do, best first.
        width: of the page.
    """
    if not items:
        return []
    item = items[0]
    title, key = clean(item.title), outline.key_words(item.key)
    both = f"{title}: {key}"
    if item.key.key is None:
        rows = [("do", title)]
    elif cell_len(both) <= width - 7:
        rows = [("do", both)]
    else:
        rows = [("do", title), ("set", key)]
    return [*rows, ("check", clean(item.check))]


def _head(page: Page, said: Screen) -> Iterator[Text]:
    right = page.glyphs.text(shorten(said.right, page.width // 2))
    room = page.width - cell_len(right) - len(said.command) - 1 - GAP
    line = Text(f"{said.command} ", "dim").append(
        page.glyphs.text(shorten(clean(said.name), room)), "bold"
    )
    line.append(" " * max(page.width - line.cell_len - cell_len(right), GAP))
    yield line.append(right)
    yield page.text(cut(page, said.identity, page.width, 1)[0], "dim")


def _answer(page: Page, said: Screen) -> Iterator[Text]:
    line = Text()
    if said.status:
        style = STYLES.get(said.status, "bold")
        line.append(f" {said.status.upper()} ", f"{style} reverse").append("  ")
    room = page.width - line.cell_len
    yield line.append(page.text(cut(page, said.sentence, room, 1)[0], "bold"))
    if said.detail:
        yield page.text(cut(page, said.detail, page.width, 1)[0], "dim")
    for words, style in said.alerts:
        yield page.text(cut(page, words, page.width, 1)[0], style)


def _reasons(page: Page, said: Screen, room: int) -> list[Text]:
    """Why, and what to do about it, in so many lines."""
    main = said.findings
    advice = list(_advice(page, said.advice))
    named = _named(page, main[MOST_REASONS:], "also")
    left = room - len(advice) - len(named) - bool(said.notes)
    lines: list[Text] = []
    for place, finding in enumerate(main[:MOST_REASONS]):
        rest = len(main[place + 1 : MOST_REASONS])
        lines += _finding(page, finding, left - len(lines) - rest)
    for reason in said.reasons:
        parts = cut(page, reason, page.width - GAP, min(left - len(lines), 2))
        lines += [
            page.text(f"{'' if i else page.glyphs.bullet:<{GAP}}{w}") for i, w in enumerate(parts)
        ]
    lines += [*advice, *named]
    if len(said.notes) <= room - len(lines):
        lines += [_headed(page, note, clean(note.message)) for note in said.notes]
    else:
        lines += _named(page, said.notes, "notes")
    return [*lines, *_named(page, said.undecided, "open")][:room]


def _finding(page: Page, finding: Finding, room: int) -> Iterator[Text]:
    """A finding in a plain sentence, and its numbers where there are lines for them."""
    yield _headed(page, finding, summary.headline(finding), "bold")
    for words in cut(page, clean(finding.message), page.width - GAP, min(room - 1, 2)):
        yield page.text(" " * GAP + words)


def _headed(page: Page, finding: Finding, words: str, weight: str = "") -> Text:
    """What a finding says in one line, between its sign and its id."""
    style = STYLES.get(finding.severity, "bold")
    where = clean(finding.id)
    if finding.layers:
        listed = f"layer{'s' if len(finding.layers) > 1 else ''} "
        listed += judgement.layer_list(finding.layers)
        where += f" {listed}" if len(listed) <= GAP * 8 else f" {len(finding.layers)} layers"
    where = shorten(where, page.width // 2)
    room = page.width - GAP - cell_len(where) - GAP
    if cell_len(re.split(r"[;.,:] ", words)[0]) > room:  # half a clause can say the opposite
        words = summary.headline(finding)
    told = cut(page, words, room, 1)[0]
    line = Text(f"{SIGNS.get(finding.severity, '!'):<{GAP}}", style)
    line.append(page.text(told, weight))
    line.append(" " * max(page.width - line.cell_len - cell_len(where), 1))
    return line.append(where, "dim")


def _advice(page: Page, rows: Sequence[tuple[str, str]]) -> Iterator[Text]:
    for name, words in rows:
        if words:
            line = Text(f"{name:<7}", "bold cyan")
            yield line.append(page.text(cut(page, words, page.width - 7, 1)[0]))


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
    return [line.append(page.text(cut(page, _listed(names, shown), room, 1)[0], "dim"))]


def _listed(names: Sequence[str], shown: int) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest else "")


def _numbers(page: Page, found: Numbers) -> Iterator[Text]:
    rows = [[page.glyphs.text(cell) for cell in row] for row in (found.heads, *found.rows)]
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(found.styles) + 1)]
    for place, row in enumerate(rows):
        line = Text(f"{row[0]:<{widths[0]}}", "bold")
        for style, cell, width in zip(found.styles, row[1:-1], widths[1:], strict=True):
            side = "<" if style == "cyan" else ">"
            line.append(f"  {cell:{side}{width}}", style if place else "dim")
        room = page.width - line.cell_len - 2
        said = f"  {row[-1]}" if cell_len(row[-1]) <= room else ""
        yield line.append(page.text(said, "dim"))


def _more(page: Page, items: Sequence[tuple[str, str]]) -> Text:
    """What else the same command can do, as far as a line holds it."""
    line = Text("more  ", "dim")
    for place, (command, why) in enumerate(items):
        mark = page.glyphs.text(" · ") if place else ""
        if line.cell_len + len(f"{mark}{command} {why}") <= page.width:
            line.append(mark, "dim").append(command, "cyan").append(f" {why}".rstrip(), "dim")
    return line


def cut(page: Page, text: str, width: int, most: int) -> list[str]:
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


def shorten(text: str, width: int) -> str:
    """A name that is too long, without its middle."""
    if cell_len(text) <= width:
        return text
    half = max(width - 2, 2) // 2
    tail = set_cell_size(text[::-1], half)[::-1]
    return f"{set_cell_size(text, half).rstrip()}..{tail.strip()}"


def by_layer(page: Page, name: str, values: Sequence[float | None], words: str) -> Text:
    """A chart of one number over the layers; a mark is the largest of those it stands for.

    Args:
        page: where it stands.
        name: "layers 0-47".
        values: by layer.
        words: what they are.
    """
    together = -(-len(values) // 48)
    shown = [
        max((v for v in values[i : i + together] if v is not None), default=None)
        for i in range(0, len(values), together)
    ]
    line = Text(f"{name}  ", "bold").append(sparkline(shown, page.glyphs, width=len(shown)), "cyan")
    return line.append(f"  {words}" if line.cell_len + len(words) + 2 <= page.width else "", "dim")
