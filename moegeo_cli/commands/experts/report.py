"""The report of `moegeo experts`: on a terminal, as plain text and as markdown."""

from __future__ import annotations

from rich.console import Console

from moegeo_cli.commands.experts import outline
from moegeo_cli.commands.experts.record import ExpertsRecord
from moegeo_cli.reports.advice import print_interventions
from moegeo_cli.reports.escaping import markdown_code, markdown_text
from moegeo_cli.reports.lens_report import (
    Head,
    markdown_actions,
    markdown_head,
    print_head,
    render_plain,
)
from moegeo_cli.reports.markdown import Notes, table
from moegeo_cli.reports.page import Page

TEXT_WIDTH, WIDE = 130, 125  # at width WIDE or more, intervals are shown beside null values


def print_record(record: ExpertsRecord, console: Console) -> None:
    """Print the report.

    Args:
        record: the result of the command.
        console: the console to print on.
    """
    page = Page(console)
    print_head(page, _head(record), record)
    wide = page.width >= WIDE
    page.section("LAYERS", "means over pairs of experts" + (", 95%" if wide else ""))
    shown = page.table(("layer", "right"), *((title, "right") for _, title in outline.COLUMNS))
    for layer in record.layers:
        cells = []
        for name, _ in outline.COLUMNS:
            metric = layer.metrics[name]
            # If there is no room for both, the null value is more useful than the interval.
            text = page.estimate(name, metric) if wide else page.value(name, metric)
            cells.append(text.append(outline.null(metric), "dim"))
        shown.add(page.text(outline.place(layer)), *cells)
    page.show_table(shown)
    for words in outline.EXPLANATIONS:
        page.line(words, "dim")
    for line in outline.asymmetry(record):
        page.show(page.paragraph(line, indent=2))
    if record.merge_candidates:
        page.section("MERGE CANDIDATES", "pairs with the most similar functions, best first")
    for line in outline.merges(record):
        page.show(page.paragraph(line, indent=2))
    if record.prune_candidates:
        page.section("PRUNE CANDIDATES", "experts that contribute least, best first")
    for line in outline.prunes(record):
        page.show(page.paragraph(line, indent=2))
    _print_trials(page, record)
    print_interventions(page, record.interventions)
    page.footnotes()


def _print_trials(page: Page, record: ExpertsRecord) -> None:
    found = record.verification
    if found is None:
        return
    page.section(
        "VERIFIED", f"change of the probe's loss ({outline.loss(record)}), in nats per token"
    )
    shown = page.table(("", "left"), ("chosen by", "left"), ("change", "right"),
                       ("experts", "wrap"))  # fmt: skip
    for trial in found.trials:
        shown.add(
            page.text(outline.action(trial, found.count)), page.text(trial.choice),
            page.text(outline.change(trial)), page.text("; ".join(trial.chosen)),
        )  # fmt: skip
    page.show_table(shown)
    for note in found.notes:
        page.line(note, "dim")


def _head(record: ExpertsRecord) -> Head:
    return Head(
        "moegeo experts",
        record.name,
        outline.head(record),
        outline.gaps(record),
        outline.checks(record),
    )


def render(record: ExpertsRecord) -> str:
    """The terminal report as plain text, for files."""
    return render_plain(record, print_record, TEXT_WIDTH)


def render_markdown(record: ExpertsRecord) -> str:
    """The report as GitHub-flavoured markdown."""
    notes = Notes()
    lines = markdown_head(_head(record), record)
    rows = []
    for layer in record.layers:
        row = [markdown_text(outline.place(layer))]
        for name, _ in outline.COLUMNS:
            metric = layer.metrics[name]
            row.append(notes.cell(name, metric) + markdown_text(outline.null(metric)))
        rows.append(row)
    heads = ["layer", *(markdown_text(title) for _, title in outline.COLUMNS)]
    lines += ["", "## Layers", "", *table(heads, rows, range(1, len(heads))), ""]
    lines += [
        f"- {markdown_text(words)}" for words in (*outline.EXPLANATIONS, *outline.asymmetry(record))
    ]
    for title, entries in (("Merge", outline.merges(record)), ("Prune", outline.prunes(record))):
        if entries:
            lines += ["", f"## {title} candidates", ""]
            lines += [f"{place}. {markdown_text(e)}" for place, e in enumerate(entries, 1)]
    found = record.verification
    if found is not None:
        trials = [
            [
                outline.action(t, found.count),
                t.choice,
                outline.change(t),
                markdown_text("; ".join(t.chosen)),
            ]
            for t in found.trials
        ]
        lines += [
            "",
            "## Verified",
            "",
            f"Change of the probe's loss ({outline.loss(record)}).",
            "",
        ]
        lines += table(("", "chosen by", "nats per token", "experts"), trials, (2,))
        lines += [f"- {markdown_text(note)}" for note in found.notes]
    lines += markdown_actions(record)
    lines += notes.lines()
    lines += ["", f"Settings: {markdown_code(outline.settings(record))}"]
    return "\n".join(lines).rstrip() + "\n"
