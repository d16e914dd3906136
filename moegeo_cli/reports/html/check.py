"""The HTML page of `moegeo check`."""

from __future__ import annotations

from moegeo_cli.records.check import CheckRecord
from moegeo_cli.reports import advice_text, figures, judgement, outline, summary
from moegeo_cli.reports import check_report as words
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.html.charts import Chart, Series, chart
from moegeo_cli.reports.html.parts import (
    Cell,
    Page,
    Section,
    Table,
    actions,
    cards,
    check_table,
    glossary,
    metric_cell,
)


def check_page(record: CheckRecord) -> Page:
    """The page of a check record."""
    verdict = record.verdict
    main, notes = summary.main_findings(verdict)
    parts = words.table_parts(record)
    warnings = outline.coverage_gaps(record.newest)
    warnings += [f"left out {skipped}" for skipped in outline.skipped_checkpoints(record)]
    used = [name for part in parts for name, _ in words.used_columns(part)]
    found = [
        *(_section(place, part) for place, part in enumerate(parts)),
        Section("training", "Over training", "Means over layers.", charts=_charts(record)),
        Section("checks", "All checks", judgement.check_words(verdict), folded=True,
                tables=[check_table(verdict.checks)] if verdict and verdict.checks else ()),
        Section("words", "Words", folded=True, terms=glossary(used)),
    ]  # fmt: skip
    return Page(
        "check",
        clean(record.run.get("name", "run")),
        clean(verdict.status) if verdict else "not judged",
        summary.verdict_sentence(verdict),
        [*words.head_lines(record), *words.note_lines(record)],
        warnings,
        findings=cards(main),
        notes=cards(notes),
        actions=actions(record.interventions),
        folded=advice_text.folded_words(record.interventions),
        sections=[s for s in found if s.tables or s.charts or s.terms],
    )


def _section(place: int, part: words.Part) -> Section:
    used = words.used_columns(part)
    rows = [
        [Cell(name, place), *(metric_cell(n, row.metrics.get(n), null=True) for n, _ in used)]
        for place, (name, row) in enumerate(part.rows)
    ]
    table = Table(
        f"table-{place}", part.explanation, (part.first, *(title for _, title in used)), rows,
        frozenset(range(len(used) + 1)), [part.note] if part.note else (),
    )  # fmt: skip
    return Section(f"part-{place}", part.title.capitalize(), tables=[table] if rows else ())


def _charts(record: CheckRecord) -> list[Chart]:
    many = record.checkpoints
    names = [n for n, _ in words.RUN_COLUMNS if any(n in c.metrics for c in many)]
    steps = [figures.step_name(c.step, clean(c.path)) for c in many]
    drawn = [
        chart(f"chart-{n}", figures.label(n), n, [float(i) for i in range(len(many))], steps,
              [Series(figures.label(n), [c.metrics.get(n) for c in many])])
        for n in names
    ] if len(many) > 1 else []  # fmt: skip
    return [c for c in drawn if c is not None]
