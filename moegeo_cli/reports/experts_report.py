"""The report of `moegeo experts`: on a terminal, as plain text and as markdown."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from moegeo_cli.records import Metric
from moegeo_cli.records.experts import (
    ExpertLayerRecord,
    ExpertsRecord,
    MergeCandidate,
    PruneCandidate,
    Trial,
)
from moegeo_cli.reports import figures
from moegeo_cli.reports.advice import print_finding, print_interventions
from moegeo_cli.reports.escaping import clean, markdown_code, markdown_text
from moegeo_cli.reports.markdown import Notes, findings_table, intervention_lines, table
from moegeo_cli.reports.outline import probe_words
from moegeo_cli.reports.page import Page

TEXT_WIDTH, ROOMY = 130, 125  # from the latter on there is room for intervals beside the nulls
COLUMNS = (
    ("alignment", "alignment"), ("overlap_input", "overlap, in"),
    ("overlap_output", "overlap, out"),
    ("asymmetry", "asymmetry"),
)  # fmt: skip
EXPLANATIONS = (
    "alignment: mean cosine of Jacobians over pairs",
    "overlap: mean cos² of the angles between subspaces of routed tokens, of experts' inputs and "
    "outputs; asymmetry: overlap of inputs less the size of alignment",
    "(n) is the value of the null: disturbed experts for alignment, as many random tokens of the "
    "layer for overlap",
)


def print_experts(record: ExpertsRecord, console: Console) -> None:
    """Print the report.

    Args:
        record: what was found.
        console: where to.
    """
    page = Page(console)
    page.line(f"moegeo experts {clean(record.name)}", "bold")
    for line in _head(record):
        page.line(line, "dim")
    for line in _gaps(record):
        page.line(line, "bold red")
    if record.findings:
        page.section("FINDINGS")
    for finding in record.findings:
        print_finding(page, finding)
    for line in _checks(record):
        page.line(line, "dim")
    roomy = page.width >= ROOMY
    page.section("LAYERS", "means over pairs of experts" + (", 95%" if roomy else ""))
    shown = page.table(("layer", "right"), *((title, "right") for _, title in COLUMNS))
    for layer in record.layers:
        cells = []
        for name, _ in COLUMNS:
            metric = layer.metrics[name]
            # Where there is no room for intervals the null matters more than a half width.
            text = page.estimate(name, metric) if roomy else page.value(name, metric)
            cells.append(text.append(_null(metric), "dim"))
        shown.add(page.text(_place(layer)), *cells)
    page.show_table(shown)
    for words in EXPLANATIONS:
        page.line(words, "dim")
    for line in _asymmetry(record):
        page.show(page.paragraph(line, indent=2))
    if record.merge_candidates:
        page.section("MERGE CANDIDATES", "pairs that compute most nearly the same, best first")
    for line in _merges(record):
        page.show(page.paragraph(line, indent=2))
    if record.prune_candidates:
        page.section("PRUNE CANDIDATES", "experts that least passes through, first those")
    for line in _prunes(record):
        page.show(page.paragraph(line, indent=2))
    _print_trials(page, record)
    print_interventions(page, record.interventions)
    page.footnotes()


def _print_trials(page: Page, record: ExpertsRecord) -> None:
    found = record.verification
    if found is None:
        return
    page.section("VERIFIED", f"change of the probe's loss ({_loss(record)}), in nats a token")
    shown = page.table(("", "left"), ("chosen by", "left"), ("change", "right"),
                       ("experts", "wrap"))  # fmt: skip
    for trial in found.trials:
        shown.add(
            page.text(_action(trial, found.count)), page.text(trial.choice),
            page.text(_change(trial)), page.text("; ".join(trial.chosen)),
        )  # fmt: skip
    page.show_table(shown)
    for note in found.notes:
        page.line(note, "dim")


def render(record: ExpertsRecord) -> str:
    """The terminal report as plain text, for files."""
    file = io.StringIO()
    print_experts(
        record, Console(file=file, width=TEXT_WIDTH, color_system=None, force_terminal=False)
    )
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def render_markdown(record: ExpertsRecord) -> str:
    """The report as GitHub-flavoured markdown."""
    notes = Notes()
    lines = [f"# moegeo experts: {markdown_text(record.name)}", ""]
    gaps = [markdown_text(line) for line in _gaps(record)]
    lines += [f"> **{gap}**" for gap in gaps] + ([""] if gaps else [])
    lines += [f"{markdown_text(line)}  " for line in (*_head(record), *_checks(record))]
    lines += findings_table(record.findings)
    rows = []
    for layer in record.layers:
        row = [markdown_text(_place(layer))]
        for name, _ in COLUMNS:
            metric = layer.metrics[name]
            row.append(notes.cell(name, metric) + markdown_text(_null(metric)))
        rows.append(row)
    heads = ["layer", *(markdown_text(title) for _, title in COLUMNS)]
    lines += ["", "## Layers", "", *table(heads, rows, range(1, len(heads))), ""]
    lines += [f"- {markdown_text(words)}" for words in (*EXPLANATIONS, *_asymmetry(record))]
    for title, entries in (("Merge", _merges(record)), ("Prune", _prunes(record))):
        if entries:
            lines += ["", f"## {title} candidates", ""]
            lines += [f"{place}. {markdown_text(e)}" for place, e in enumerate(entries, 1)]
    found = record.verification
    if found is not None:
        trials = [
            [_action(t, found.count), t.choice, _change(t), markdown_text("; ".join(t.chosen))]
            for t in found.trials
        ]
        lines += ["", "## Verified", "", f"Change of the probe's loss ({_loss(record)}).", ""]
        lines += table(("", "chosen by", "nats a token", "experts"), trials, (2,))
        lines += [f"- {markdown_text(note)}" for note in found.notes]
    if record.interventions:
        lines += ["", "## What to do", ""]
    for place, item in enumerate(record.interventions, 1):
        lines += intervention_lines(place, item)
    lines += notes.lines()
    lines += ["", f"Settings: {markdown_code(_settings(record))}"]
    return "\n".join(lines).rstrip() + "\n"


def _head(record: ExpertsRecord) -> list[str]:
    methods = sorted({layer.method for layer in record.layers})
    taken = sorted({layer.directions for layer in record.layers if layer.directions is not None})
    how = ["whole Jacobians" if d == 0 else f"{d} random directions a token" for d in taken]
    words = [
        f"{clean(record.model_type)}, {clean(record.checkpoint)}, "
        f"probe {probe_words(record.probe)}",
        clean("; ".join([*methods, *how])),
    ]
    if record.settings.get("reweighting"):
        words.append("tokens weighed by the whole routing distribution: a reweighting of this "
                     "model, which says nothing of one trained with soft routing")  # fmt: skip
    return [*words, *(clean(note) for note in record.notes)]


def _gaps(record: ExpertsRecord) -> list[str]:
    coverage = record.coverage
    if coverage.routers_found == coverage.routers_measured:
        return []
    words = [f"Partial coverage: {coverage.routers_measured} of {coverage.routers_found} measured"]
    return words + [f"{clean(k)}: {clean(v)}" for k, v in coverage.not_measured.items()]


def _checks(record: ExpertsRecord) -> list[str]:
    """What became of the rules that found nothing."""
    lines = [
        f"{check.id} {check.name}: {clean(check.reason or 'passed')}"
        for check in record.checks
        if check.outcome != "found"
    ]
    return [f"check {line}" for line in lines]


def _place(layer: ExpertLayerRecord) -> str:
    return figures.layer_name(layer.layer, layer.router)


def _at(candidate: MergeCandidate | PruneCandidate) -> str:
    return clean(figures.layer_name(candidate.layer, candidate.router))


def _null(metric: Metric) -> str:
    return "" if metric.null_value is None else f" ({metric.null_value:.2f})"


def _asymmetry(record: ExpertsRecord) -> list[str]:
    told = [layer for layer in record.layers if layer.coexist is not None]
    if not told:
        return []
    both = [_place(layer) for layer in told if layer.coexist]
    lines = [
        f"Subspaces overlap more than random ones, and more than functions align, in {len(both)} "
        f"of {figures.plural(len(told), 'layer')}; randomly initialised experts do so too."
    ]
    alike = sum(layer.seen_alike_done_differently or 0 for layer in told)
    apart = sum(layer.seen_differently_done_alike or 0 for layer in told)
    lines.append(
        f"Inputs and functions disagree (ranks among a layer's pairs over half apart): "
        f"{figures.plural(alike, 'pair')} seen alike and done differently, "
        f"{figures.plural(apart, 'pair')} seen differently and done alike."
    )
    return lines


def _merges(record: ExpertsRecord) -> list[str]:
    return [
        f"layer {_at(c)}: {' + '.join(map(str, c.experts))}: {clean(c.reason)}"
        for c in record.merge_candidates
    ]


def _prunes(record: ExpertsRecord) -> list[str]:
    return [
        f"layer {_at(c)}: {c.expert}: score {figures.number(c.score)}: {clean(c.reason)}"
        for c in record.prune_candidates
    ]


def _loss(record: ExpertsRecord) -> str:
    assert record.verification is not None
    value = record.verification.loss.value
    return "?" if value is None else f"{figures.number(value)} before"


def _action(trial: Trial, count: int) -> str:
    return f"{trial.action} {count}"


def _change(trial: Trial) -> str:
    metric = trial.change
    if metric.value is None:
        return "–"
    if metric.ci_low is None or metric.ci_high is None:
        return f"{metric.value:+.4f}"
    return f"{metric.value:+.4f} [{metric.ci_low:+.4f}, {metric.ci_high:+.4f}]"


def _settings(record: ExpertsRecord) -> str:
    names: Sequence[str] = (
        "tokens", "weights", "rank", "jacobian_tokens", "kept_tokens", "max_tokens", "dtype",
        "device", "seed",
    )  # fmt: skip
    return ", ".join(f"{name} {record.settings[name]}" for name in names)
