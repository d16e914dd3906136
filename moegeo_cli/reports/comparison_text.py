"""A comparison of two runs as markdown, and sentences that its other formats use too."""

from __future__ import annotations

from moegeo_cli.records.comparison import (
    ComparisonRecord,
    Difference,
    MatchedPair,
    RunSummary,
    SharedBytes,
)
from moegeo_cli.reports import figures
from moegeo_cli.reports.escaping import clean, markdown_code, markdown_text
from moegeo_cli.reports.markdown import Notes, table


def headline(record: ComparisonRecord) -> str:
    """Which run is healthier, in one sentence."""
    if record.healthier is None:
        return "No difference in health is shown."
    side = record.run_a if record.healthier == "a" else record.run_b
    return f"{record.healthier.upper()}, {clean(side.name, 80)}, is the healthier run."


def run_words(run: RunSummary) -> str:
    """A run's name, verdict and number of checkpoints in one line."""
    words = [clean(run.status or "not judged")]
    words += [f"routing {clean(run.routing)}"] if run.routing else []
    words += [f"performance {clean(run.performance)}"] if run.performance else []
    if run.checkpoints is not None:
        words.append(figures.plural(run.checkpoints, "checkpoint"))
    return f"{clean(run.name, 80)}: {' · '.join(words)}"


def pair_name(record: ComparisonRecord, pair: MatchedPair) -> str:
    """The name of a matched pair: its progress, or the steps if only the newest were matched."""
    by = record.matched_by
    if by == "newest":
        a, b = ("no step" if s is None else f"step {s:,}" for s in (pair.step_a, pair.step_b))
        return f"the newest of each: A {a}, B {b}"
    a, b = progress(by, pair.progress_a), progress(by, pair.progress_b)
    return f"{by} {a}" if a == b else f"{by} {a} and {b}"


def progress(by: str, value: float | None) -> str:
    """Progress as text: a fraction in percent, tokens and steps as counts."""
    if value is None:
        return "?"
    return f"{value:.1%}" if by == "fraction" else figures.count(value)


def unmatched_words(record: ComparisonRecord) -> list[str]:
    """A line for each checkpoint without a match."""
    return [
        f"{u.run.upper()} at {figures.step_name(u.step, progress(record.matched_by, u.progress))}: "
        f"{clean(u.reason)}"
        for u in record.unmatched
    ]


def shared_words(shared: SharedBytes | None) -> str:
    """Which tensors two checkpoints have in common, in one sentence; "" if not compared."""
    if shared is None:
        return ""
    counts = (
        ("routers", shared.routers, shared.routers_of),
        ("experts", shared.experts, shared.experts_of),
        ("attention tensors", shared.attention, shared.attention_of),
        ("other tensors", shared.others, shared.others_of),
    )
    if not any(equal for _, equal, _ in counts):
        return "No tensor is the same in both, bit for bit."
    words = [f"{equal:,} of {of:,} {name}" for name, equal, of in counts if of]
    where = [
        str(x.router if x.layer is None else x.layer)
        for x in shared.layers
        if x.router_equal or x.experts
    ]
    layers = f" Layers: {', '.join(where)}." if 0 < len(where) < len(shared.layers) else ""
    return clean(f"Equal bit for bit: {', '.join(words)}.{layers}")


def favoured(found: Difference) -> str:
    """Which side a difference favours.

    Returns:
        "a" or "b"; "" if the interval contains 0; "differs" if neither direction is better.
    """
    low, high, better = found.difference.ci_low, found.difference.ci_high, found.a.higher_is_better
    if low is None or high is None or low <= 0 <= high:
        return ""
    if better is None:
        return "differs"
    return "b" if (low > 0) == better else "a"


def render_markdown(record: ComparisonRecord, *, layers: bool = True) -> str:
    """The comparison as a markdown document."""
    notes = Notes()
    lines = [
        f"# moegeo compare: {markdown_text(headline(record))}",
        "",
        *(f"- Note: {markdown_text(note)}" for note in record.notes),
        *([""] if record.notes else []),
        markdown_text(record.reason),
        "",
    ]
    lines += [
        f"- A {markdown_text(run_words(record.run_a))}",
        f"- B {markdown_text(run_words(record.run_b))}",
    ]
    if not record.pairs:
        lines += ["", f"No two checkpoints match by {markdown_text(record.matched_by)}."]
    heads = ("metric", "A", "B", "B − A", "better")
    for pair in reversed(record.pairs):
        lines += ["", f"## At {markdown_text(pair_name(record, pair))}", ""]
        rows = [
            [markdown_text(figures.label(n)), *_cells(notes, n, d), favoured(d).upper()]
            for n, d in pair.differences.items()
        ]
        lines += table(heads, rows, (1, 2, 3))
        shared = shared_words(pair.shared)
        lines += ["", markdown_text(shared)] if shared else []
        if layers and pair.layers:
            routers = [
                [str(x.layer), markdown_code(x.router), markdown_text(figures.label(n)),
                 *_cells(notes, n, d), favoured(d).upper()]
                for x in pair.layers for n, d in x.differences.items()
            ]  # fmt: skip
            lines += ["", *table(("layer", "router", *heads), routers, (3, 4, 5))]
    unmatched = unmatched_words(record)
    lines += (
        ["", "## Without a match", "", *(f"- {markdown_text(u)}" for u in unmatched)]
        if unmatched
        else []
    )
    return "\n".join([*lines, *notes.lines()]).rstrip() + "\n"


def _cells(notes: Notes, name: str, found: Difference) -> list[str]:
    return [notes.cell(name, m) for m in (found.a, found.b, found.difference)]
