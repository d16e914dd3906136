"""The report of `moegeo check`: on a terminal, as plain text and as markdown."""

from __future__ import annotations

import io
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from moegeo_cli.records import Metric
from moegeo_cli.records.check import CheckedCheckpoint, CheckedLayer, CheckRecord
from moegeo_cli.reports import advice_text, figures, judgement, outline
from moegeo_cli.reports.advice import print_finding, print_interventions
from moegeo_cli.reports.escaping import clean, markdown_code, markdown_text
from moegeo_cli.reports.markdown import Notes, findings_table, intervention_lines, table
from moegeo_cli.reports.page import STYLES, Page

TEXT_WIDTH = 130
MAX_CHECKPOINTS = 12  # rows of the table: the first checkpoint and the newest ones
ROUTER_COLUMNS = (
    ("row_norm", "norm"), ("row_norm_spread", "spread"), ("stable_rank", "stable rank"),
    ("router_cosine", "cosine"), ("bias_spread", "bias spread"), ("bias_drift", "drift"),
)  # fmt: skip
EXPERT_COLUMNS = (
    ("expert_norm", "norm"), ("expert_norm_spread", "spread"),
    ("expert_norm_top", "largest/median"), ("expert_distance", "distance"),
    ("own_row", "own row"), ("expert_drift", "drift"),
)  # fmt: skip
RUN_COLUMNS = (
    ("row_norm", "row norm"), ("stable_rank", "stable rank"), ("bias_spread", "bias spread"),
    ("expert_norm", "expert norm"), ("expert_distance", "distance"), ("expert_drift", "drift"),
)  # fmt: skip
MOVED_COLUMNS = (
    ("routers_moved", "routers"), ("experts_moved", "experts"), ("others_moved", "other weights"),
)  # fmt: skip
ROUTER_NOTE = (
    "norm, spread: mean and relative spread of a router's row norms; drift: mean change of the "
    "bias since the previous checkpoint; (n): value of random matrices of the same shape"
)
EXPERT_NOTE = (
    "distance: between two experts of a layer, 1 if independent; own row: share of experts that "
    "respond most strongly to their own router row; drift: change of an expert since the first "
    "checkpoint, over its norm there"
)


@dataclass(frozen=True)
class Part:
    """A table of metrics.

    Attributes:
        title: its title.
        explanation: a few words beside the title.
        first: heading of the first column.
        columns: name and heading of each metric.
        rows: a name, and the layer or checkpoint with the metrics.
        note: a line below the table.
    """

    title: str
    explanation: str
    first: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, CheckedLayer | CheckedCheckpoint]]
    note: str = ""


def table_parts(record: CheckRecord, most: int | None = None) -> list[Part]:
    """The tables of the report, with at most `most` checkpoints."""
    newest = record.newest
    when = figures.step_name(newest.step, clean(newest.path))
    layers = [(_place(x), x) for x in newest.layers]
    parts = [
        Part("ROUTERS", when, "layer", ROUTER_COLUMNS, layers, ROUTER_NOTE),
        Part("EXPERTS", when, "layer", EXPERT_COLUMNS, layers, EXPERT_NOTE),
    ]
    steps = [(_step(c), c) for c in _listed_checkpoints(record, most)]
    if len(steps) > 1:
        parts += [
            Part("CHECKPOINTS", "means over layers", "step", RUN_COLUMNS, steps),
            Part("MOVED", "share whose bytes differ from the previous checkpoint", "step",
                 MOVED_COLUMNS, steps[1:]),
        ]  # fmt: skip
    return parts


def print_check(record: CheckRecord, console: Console, path: str | None = None) -> None:
    """Print the report.

    Args:
        record: the result of the command.
        console: the console to print on.
        path: the run's path, for the command at the end.
    """
    page = Page(console)
    verdict = record.verdict
    head = Text("moegeo check ", "dim").append(
        page.glyphs.text(clean(record.run.get("name", ""), 48)), "bold"
    )
    if verdict is not None:
        head.append("   ").append(clean(verdict.status).upper(), STYLES.get(verdict.status, "bold"))
    page.show(head)
    for line in head_lines(record):
        page.line(line, "dim")
    for gap in outline.coverage_gaps(record.newest):
        page.show(page.paragraph(gap, "bold red", sign="!"))
    for skipped in outline.skipped_checkpoints(record):
        page.show(page.paragraph(f"left out {skipped}", "yellow", sign="!"))
    for note in note_lines(record):
        page.show(page.paragraph(note, sign=page.glyphs.bullet))
    active = judgement.findings(verdict)
    if active:
        page.section("FINDINGS", "from the files alone")
    for finding in active:
        print_finding(page, finding)
    for line in _status_lines(record):
        page.line(line, "dim")
    print_interventions(page, record.interventions)
    for part in table_parts(record, MAX_CHECKPOINTS):
        _print_part(page, part)
    page.footnotes()
    page.section("NEXT")
    page.line(_next(path), indent=2)


def _print_part(page: Page, part: Part) -> None:
    used = used_columns(part)
    page.section(part.title, part.explanation)
    shown = page.table((part.first, "right"), *((title, "right") for _, title in used))
    for name, row in part.rows:
        cells = [
            page.value(key, row.metrics.get(key)).append(_null(row.metrics.get(key)), "dim")
            for key, _ in used
        ]
        shown.add(page.text(name), *cells)
    page.show_table(shown)
    if part.note:
        page.line(part.note, "dim")


def render(record: CheckRecord) -> str:
    """The terminal report as plain text, for files."""
    file = io.StringIO()
    print_check(
        record,
        Console(
            file=file,
            force_jupyter=False,
            width=TEXT_WIDTH,
            color_system=None,
            force_terminal=False,
        ),
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def render_markdown(record: CheckRecord, *, layers: bool = True) -> str:
    """The report as GitHub-flavoured markdown.

    Args:
        record: the result of the command.
        layers: include the tables.
    """
    notes, verdict = Notes(), record.verdict
    status = clean(verdict.status) if verdict else "not judged"
    name = markdown_text(record.run.get("name", "run"))
    lines = [f"# moegeo check: {name} is {markdown_text(status)}", ""]
    lines += [f"> **{markdown_text(gap)}**" for gap in outline.coverage_gaps(record.newest)]
    lines += [f"{markdown_text(line)}  " for line in head_lines(record)]
    lines += [f"Left out: {markdown_text(s)}." for s in outline.skipped_checkpoints(record)]
    lines += [f"- {markdown_text(note)}" for note in note_lines(record)]
    lines += findings_table(judgement.findings(verdict))
    lines += ["", *(f"{markdown_text(line)}  " for line in _status_lines(record))]
    if record.interventions:
        lines += ["", "## What to do", ""]
    for place, item in enumerate(advice_text.to_do(record.interventions), 1):
        lines += intervention_lines(place, item)
    if layers:
        for part in table_parts(record):
            lines += _markdown_part(part, notes)
        lines += notes.lines()
    lines += ["", markdown_code(_next(None))]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_part(part: Part, notes: Notes) -> list[str]:
    used = used_columns(part)
    body = [
        [markdown_text(name), *(
            notes.cell(key, row.metrics.get(key)) + _null(row.metrics.get(key)) for key, _ in used
        )]
        for name, row in part.rows
    ]  # fmt: skip
    lines = ["", f"## {part.title.capitalize()}, {markdown_text(part.explanation)}", ""]
    lines += table([part.first, *(title for _, title in used)], body, range(len(used) + 1))
    return [*lines, "", markdown_text(part.note)] if part.note else lines


def used_columns(part: Part) -> list[tuple[str, str]]:
    """The columns for which at least one row has a metric."""
    return [
        (k, title) for k, title in part.columns if any(k in row.metrics for _, row in part.rows)
    ]


def head_lines(record: CheckRecord) -> list[str]:
    """Lines about what was read."""
    newest, run = record.newest, record.run
    facts = [run.get("model_type") or "unknown model", f"{run.get('experts') or '?'} experts"]
    facts += [f"top {run['top_k']}"] if run.get("top_k") else []
    facts += list(newest.scheme)
    what = "routers, biases and norms only" if record.settings.get("quick") else "all weights"
    many = figures.plural(len(record.checkpoints), "checkpoint")
    return [
        clean(", ".join(str(f) for f in facts)) + f"; {many}, "
        f"newest {figures.step_name(newest.step, clean(newest.path))}",
        f"checked in the files: {what}; no model was built and no data was read",
    ]


def note_lines(record: CheckRecord) -> list[str]:
    """The notes of the run and its checkpoints, each once."""
    notes = [*(record.run.get("notes") or ())]
    for checkpoint in record.checkpoints:
        name = figures.step_name(checkpoint.step, checkpoint.path)
        notes += [f"{name}: {note}" for note in checkpoint.notes]
    return [clean(note) for note in dict.fromkeys(notes)]


def _status_lines(record: CheckRecord) -> list[str]:
    """Lines about resolved findings, the number of rules tried, and skipped rules."""
    verdict = record.verdict
    lines = [
        f"resolved: {clean(f.id)} {clean(f.name)} at step {', '.join(f'{s:,}' for s in f.steps)}"
        for f in judgement.findings(verdict, state="resolved")
    ]
    words = judgement.check_words(verdict)
    lines += [words] if words else []
    skipped = [c for c in verdict.checks if c.outcome == "skipped"] if verdict else []
    return lines + [f"{clean(c.id)} {clean(c.name)}: {clean(c.reason or '')}" for c in skipped]


def _listed_checkpoints(record: CheckRecord, most: int | None) -> Sequence[CheckedCheckpoint]:
    """The first checkpoint and the newest ones, at most `most`."""
    found = record.checkpoints
    if most is None or len(found) <= most:
        return found
    return (found[0], *found[1 - most :])


def _next(path: str | None) -> str:
    run = "RUN" if path is None else shlex.quote(clean(path))
    return f"moegeo analyze {run}"


def _place(layer: CheckedLayer) -> str:
    if layer.layer is None:
        return clean(layer.router)
    return clean(figures.layer_name(layer.layer, layer.router))


def _step(checkpoint: CheckedCheckpoint) -> str:
    return clean(checkpoint.path) if checkpoint.step is None else f"{checkpoint.step:,}"


def _null(metric: Metric | None) -> str:
    if metric is None or metric.value is None or metric.null_value is None:
        return ""
    return f" ({figures.number(metric.null_value, 2)})"
