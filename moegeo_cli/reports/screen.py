"""The first screen of a report, with 24 lines of 80 columns: what every command prints first.

It shows the answer in words, the reasons, what to do next, a few metrics with their meaning, and
charts over layers. A command fills in a `Screen`; everything else is in its full report.
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
from moegeo_cli.reports import advice_text, judgement, summary
from moegeo_cli.reports.charts import sparkline
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page

R = TypeVar("R")
LINES = 24
WIDTH = 100  # a longer line is hard to read
SIGNS = {"failing": "!!", "watch": "!", "info": "i"}
MAX_DETAILED = 2  # findings that are shown with their message; the others by name only
GAP = 3  # indent of continued lines


@dataclass(frozen=True, slots=True)
class Numbers:
    """A table of numbers.

    Attributes:
        heads: headings of the label, of each column, and of the meaning.
        rows: a label, a text for each column, and the meaning of the number.
        styles: style of each column; "cyan" marks a chart.
    """

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    styles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Screen:
    """The content of one screen.

    Attributes:
        command: name of the command.
        name: name of the run or checkpoint.
        right: text at the end of the first line.
        identity: the model, in one line.
        sentence: the answer.
        numbers: a table of metrics.
        status: status of the verdict; "" for none.
        detail: one line below the answer.
        alerts: lines that must not be missed, each with its style.
        findings: findings behind the answer, worst first.
        notes: findings that need no action.
        reasons: further sentences that give reasons.
        advice: rows of a word and what to do.
        undecided: checks that could not be decided.
        strips: charts over layers.
        more: further options and commands, each with its purpose.
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
        console: the console to print on; the screen fits its width, colours and encoding.
        record: the result of the command.
        fill: builds the screen of a record.
    """
    page = Page(console)
    page.width = min(page.width, WIDTH)
    screen = fill(page, record)
    head = [*_head(page, screen), Text(), *_answer(page, screen)]
    foot = [*_numbers(page, screen.numbers), *screen.strips, _more(page, screen.more)]
    room = LINES - len(head) - len(foot) - 1
    for line in (*head, *_reasons(page, screen, room), Text(), *foot):
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
    """Rows for the first intervention: what to do, and how to check that it worked.

    Args:
        items: interventions, best first.
        width: width of the page.
    """
    if not items:
        return []
    item = items[0]
    title, key = clean(item.title), advice_text.key_words(item.key)
    both = f"{title}: {key}"
    if item.key.key is None:
        rows = [("do", title)]
    elif cell_len(both) <= width - 7:
        rows = [("do", both)]
    else:
        rows = [("do", title), ("set", key)]
    return [*rows, ("check", clean(item.check))]


def _head(page: Page, screen: Screen) -> Iterator[Text]:
    right = page.glyphs.text(shorten(screen.right, page.width // 2))
    room = page.width - cell_len(right) - len(screen.command) - 1 - GAP
    line = Text(f"{screen.command} ", "dim").append(
        page.glyphs.text(shorten(clean(screen.name), room)), "bold"
    )
    line.append(" " * max(page.width - line.cell_len - cell_len(right), GAP))
    yield line.append(right)
    yield page.text(cut(page, screen.identity, page.width, 1)[0], "dim")


def _answer(page: Page, screen: Screen) -> Iterator[Text]:
    line = Text()
    if screen.status:
        style = STYLES.get(screen.status, "bold")
        line.append(f" {screen.status.upper()} ", f"{style} reverse").append("  ")
    room = page.width - line.cell_len
    yield line.append(page.text(cut(page, screen.sentence, room, 1)[0], "bold"))
    if screen.detail:
        yield page.text(cut(page, screen.detail, page.width, 1)[0], "dim")
    for words, style in screen.alerts:
        yield page.text(cut(page, words, page.width, 1)[0], style)


def _reasons(page: Page, screen: Screen, room: int) -> list[Text]:
    """Findings, reasons, advice and notes, in at most `room` lines."""
    main = screen.findings
    advice = list(_advice(page, screen.advice))
    named = _names_line(page, main[MAX_DETAILED:], "also")
    left = room - len(advice) - len(named) - bool(screen.notes)
    lines: list[Text] = []
    for place, finding in enumerate(main[:MAX_DETAILED]):
        rest = len(main[place + 1 : MAX_DETAILED])
        lines += _finding(page, finding, left - len(lines) - rest)
    for reason in screen.reasons:
        parts = cut(page, reason, page.width - GAP, min(left - len(lines), 2))
        lines += [
            page.text(f"{'' if i else page.glyphs.bullet:<{GAP}}{w}") for i, w in enumerate(parts)
        ]
    lines += [*advice, *named]
    if len(screen.notes) <= room - len(lines):
        lines += [_one_line(page, note, clean(note.message)) for note in screen.notes]
    else:
        lines += _names_line(page, screen.notes, "notes")
    return [*lines, *_names_line(page, screen.undecided, "open")][:room]


def _finding(page: Page, finding: Finding, room: int) -> Iterator[Text]:
    """A finding's headline, and its message if there are lines for it."""
    yield _one_line(page, finding, summary.headline(finding), "bold")
    for words in cut(page, clean(finding.message), page.width - GAP, min(room - 1, 2)):
        yield page.text(" " * GAP + words)


def _one_line(page: Page, finding: Finding, words: str, weight: str = "") -> Text:
    """A finding in one line: its sign, the words, its id and layers."""
    style = STYLES.get(finding.severity, "bold")
    where = clean(finding.id)
    if finding.layers:
        listed = f"layer{'s' if len(finding.layers) > 1 else ''} "
        listed += judgement.layer_list(finding.layers)
        where += f" {listed}" if len(listed) <= GAP * 8 else f" {len(finding.layers)} layers"
    where = shorten(where, page.width // 2)
    room = page.width - GAP - cell_len(where) - GAP
    if cell_len(re.split(r"[;.,:] ", words)[0]) > room:  # a cut clause can mean the opposite
        words = summary.headline(finding)
    line = Text(f"{SIGNS.get(finding.severity, '!'):<{GAP}}", style)
    line.append(page.text(cut(page, words, room, 1)[0], weight))
    line.append(" " * max(page.width - line.cell_len - cell_len(where), 1))
    return line.append(where, "dim")


def _advice(page: Page, rows: Sequence[tuple[str, str]]) -> Iterator[Text]:
    for name, words in rows:
        if words:
            line = Text(f"{name:<7}", "bold cyan")
            yield line.append(page.text(cut(page, words, page.width - 7, 1)[0]))


def _names_line(page: Page, findings: Sequence[Finding | Check], word: str) -> list[Text]:
    """The names of findings in one line; nothing if there are none."""
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
        meaning = f"  {row[-1]}" if cell_len(row[-1]) <= room else ""
        yield line.append(page.text(meaning, "dim"))


def _more(page: Page, items: Sequence[tuple[str, str]]) -> Text:
    """Further options and commands, as many as fit into one line."""
    line = Text("more  ", "dim")
    for place, (command, why) in enumerate(items):
        mark = page.glyphs.text(" · ") if place else ""
        if line.cell_len + len(f"{mark}{command} {why}") <= page.width:
            line.append(mark, "dim").append(command, "cyan").append(f" {why}".rstrip(), "dim")
    return line


def cut(page: Page, text: str, width: int, most: int) -> list[str]:
    """Wrap text into at most `most` lines. It is cut after a clause, else after a word."""
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
    """Wrap text by display width: some characters take two cells."""
    return [line.plain.rstrip() for line in Text(text).wrap(page.console, width)]


def shorten(text: str, width: int) -> str:
    """Shorten a name to a width by leaving out its middle."""
    if cell_len(text) <= width:
        return text
    half = max(width - 2, 2) // 2
    tail = set_cell_size(text[::-1], half)[::-1]
    return f"{set_cell_size(text, half).rstrip()}..{tail.strip()}"


def by_layer(page: Page, name: str, values: Sequence[float | None], words: str) -> Text:
    """A chart of one metric over the layers. With many layers, a mark is the largest of several.

    Args:
        page: the page.
        name: the layers, such as "layers 0-47".
        values: value of each layer.
        words: what the values are.
    """
    per_mark = -(-len(values) // 48)
    shown = [
        max((v for v in values[i : i + per_mark] if v is not None), default=None)
        for i in range(0, len(values), per_mark)
    ]
    line = Text(f"{name}  ", "bold").append(sparkline(shown, page.glyphs, width=len(shown)), "cyan")
    return line.append(f"  {words}" if line.cell_len + len(words) + 2 <= page.width else "", "dim")
