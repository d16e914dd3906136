"""The parts of an HTML report as plain data, which the template turns into HTML and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import Check, Finding, Intervention, Metric
from moegeo_cli.reports import advice_text, figures, judgement, summary
from moegeo_cli.reports.escaping import clean, clean_lines
from moegeo_cli.reports.folding import fold_reason
from moegeo_cli.reports.html.charts import Chart


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table: its text, its sort key, and its tooltip."""

    text: str
    sort: float | str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A sortable table; `numeric` are the positions of columns of numbers."""

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numeric: frozenset[int] = frozenset()
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tile:
    """One metric with its trend and its meaning."""

    label: str
    value: str
    before: str
    meaning: str
    chart: Chart | None


@dataclass(frozen=True, slots=True)
class Card:
    """A finding."""

    id: str
    name: str
    severity: str
    headline: str
    layers: str
    message: str
    why: str
    evidence: Sequence[str]
    limit: str


@dataclass(frozen=True, slots=True)
class Action:
    """An intervention."""

    title: str
    rows: Sequence[tuple[str, str]]
    key: str  # the setting, for copying
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A heat map with one frame per checkpoint or layer; `data` is read by the page's script."""

    name: str
    caption: str
    help: str
    legend: Sequence[str]
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A section of a page; a folded section opens on a click."""

    name: str
    title: str
    lead: str = ""
    folded: bool = False
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart] = ()
    maps: Sequence[HeatMap] = ()
    tables: Sequence[Table] = ()
    lines: Sequence[str] = ()
    terms: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """The content of an HTML report."""

    command: str
    name: str
    status: str
    sentence: str
    facts: Sequence[str]
    warnings: Sequence[str] = ()
    lamps: Sequence[tuple[str, str]] = ()
    reasons: Sequence[str] = ()
    findings: Sequence[Card] = ()
    notes: Sequence[Card] = ()
    actions: Sequence[Action] = ()
    folded: str = ""
    sections: Sequence[Section] = field(default_factory=tuple)


def cards(found: Sequence[Finding]) -> list[Card]:
    """Findings as cards."""
    return [
        Card(
            clean(f.id),
            clean(f.name),
            f.severity,
            summary.headline(f),
            judgement.layer_list(f.layers),
            clean(f.message),
            summary.why(f),
            judgement.evidence_lines(f.evidence),
            judgement.threshold_words(f),
        )
        for f in found
    ]


def actions(items: Sequence[Intervention]) -> list[Action]:
    """Interventions, without those that showed no gain in the study."""
    found = []
    for item in advice_text.to_do(items):
        live = advice_text.live_words(item.key)
        rows = [
            ("do", clean(item.action)),
            ("why", clean(item.why)),
            ("note", clean(item.key.note or "")),
            ("check", clean(item.check)),
            ("evidence", advice_text.evidence_words(item.evidence)),
            ("not with", ", ".join(clean(c) for c in item.conflicts)),
        ]
        key = advice_text.key_words(item.key) + (f" ({live})" if live else "")
        lines = clean_lines(item.key.lines or "")
        found.append(Action(clean(item.title), [r for r in rows if r[1]], key, lines))
    return found


def metric_cell(name: str, metric: Metric | None, *, null: bool = False) -> Cell:
    """A value with its interval; a dash with its reason as a note if there is no value."""
    if metric is None:
        return Cell("")
    if metric.value is None:
        return Cell("–", None, fold_reason(metric.reason or "no reason was recorded"))
    places = figures.decimals(name)
    text = figures.number(metric.value, places)
    ends = figures.interval(metric, places)
    if null and metric.null_value is not None:
        text += f" ({figures.number(metric.null_value, 2)})"
    note = fold_reason(metric.reason) if metric.reason else ""
    return Cell(f"{text} {ends}" if ends else text, metric.value, note)


def check_table(checks: Sequence[Check]) -> Table:
    """A table of every rule that was tried."""
    rows = [
        [Cell(clean(c.id)), Cell(clean(c.name)), Cell(clean(c.axis)), Cell(clean(c.outcome)),
         Cell(clean(c.reason or ""))]
        for c in checks
    ]  # fmt: skip
    heads = ("id", "finding", "about", "outcome", "why it could not be decided")
    return Table("checks", "every check that was tried", heads, rows)


def glossary(names: Sequence[str]) -> list[tuple[str, str]]:
    """Labels and meanings of metrics, each once."""
    bases = dict.fromkeys(name.removesuffix("_worst") for name in names)
    known = [specs()[base] for base in bases if base in specs()]
    return [(spec.label, spec.meaning) for spec in known]
