"""The full terminal report of a run: verdict and advice first, then findings and tables."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from moegeo_cli.records import Intervention, RunRecord
from moegeo_cli.reports import advice_text, figures, judgement, outline
from moegeo_cli.reports.advice import print_finding, print_interventions
from moegeo_cli.reports.escaping import clean
from moegeo_cli.reports.page import STYLES, Page
from moegeo_cli.reports.terminal_tables import (
    print_depth,
    print_dynamics,
    print_fisher,
    print_routing,
    print_training,
)

TOP_INTERVENTIONS = 3
TEXT_WIDTH = 100


def print_run(record: RunRecord, console: Console, path: str | None = None) -> None:
    """Print a run's report.

    Args:
        record: the run, judged or not.
        path: the run's path, for the commands at the end.
        console: the console to print on; the report fits its width, colours and encoding.
    """
    page = Page(console)
    _print_header(page, record)
    _print_coverage(page, record)
    page.line()
    page.show(_verdict_panel(page, record))
    _print_findings(page, record)
    print_training(page, record)
    print_routing(page, record)
    print_fisher(page, record)
    print_depth(page, record)
    print_dynamics(page, record)
    page.footnotes()
    print_interventions(page, record.interventions)
    _print_foot(page, record, path)


def render(record: RunRecord) -> str:
    """The terminal report as plain text, for files."""
    file = io.StringIO()
    print_run(
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


def _print_header(page: Page, record: RunRecord) -> None:
    name = Text("moegeo ", "dim").append(
        page.glyphs.text(clean(record.run.get("name", ""), 48)), "bold"
    )
    name.append(page.glyphs.text(f"   {outline.checkpoint_words(record)}"))
    page.show(name)
    page.line(outline.identity(record))
    page.line(f"probe {outline.probe_words(record.probe)}", "dim")


def _print_coverage(page: Page, record: RunRecord) -> None:
    gaps = outline.coverage_gaps(record.newest)
    if gaps:
        page.line()
        page.show(Text("PARTIAL COVERAGE ", "bold white on red").append(
            page.glyphs.text(f" {gaps[0]}"), "bold red"))  # fmt: skip
        for gap in gaps[1:]:
            page.show(page.paragraph(gap, sign=page.glyphs.bullet, indent=2))
    else:
        found = figures.plural(record.newest.coverage.routers_found, "router")
        page.line(f"coverage 100%: {found} found, all measured", "dim")
    for skipped in outline.skipped_checkpoints(record):
        page.show(page.paragraph(f"left out {skipped}", "yellow", sign="!"))


def _verdict_panel(page: Page, record: RunRecord) -> RenderableType:
    verdict = record.verdict
    if verdict is None:
        return Panel(Text("measured, not judged"), title=Text("NOT JUDGED"), title_align="left")
    style = STYLES.get(verdict.status, "bold")
    axes = Text()
    for place, (axis, word) in enumerate(
        (("routing", verdict.routing), ("performance risk", verdict.performance))
    ):
        axes.append("   " if place else "").append(f"{axis} ").append(
            clean(word), STYLES.get(word, "bold")
        )
    axes.append(f"   {clean(verdict.policy)} policy", "dim")
    lines: list[RenderableType] = [axes]
    lines += [page.paragraph(clean(r), sign=page.glyphs.bullet) for r in verdict.reasons]
    checks = judgement.check_words(verdict)
    if checks:
        lines.append(page.text(checks, "dim"))
    steps = advice_text.to_do(record.interventions)
    if steps:
        lines += [Text(), Text("What to do next", "bold")]
    for place, item in enumerate(steps[:TOP_INTERVENTIONS], 1):
        lines += _advice(page, place, item)
    more = len(steps) - TOP_INTERVENTIONS
    if more > 0:
        lines.append(page.text(f"and {figures.plural(more, 'more step')} below", "dim"))
    return Panel(
        Group(*lines),
        title=Text(f" {clean(verdict.status).upper()} ", style),
        title_align="left",
        border_style=style.removeprefix("bold "),
        padding=(1, 2),
        width=min(page.width, 110),
    )


def _advice(page: Page, place: int, item: Intervention) -> list[RenderableType]:
    """An intervention in short: its title, the setting, and whether the framework reads it."""
    head = page.paragraph(clean(item.title), "bold", sign=f"{place}.")
    key = Text().append(page.glyphs.text(advice_text.key_words(item.key)), "cyan")
    live = advice_text.live_words(item.key)
    if live:
        key.append(page.glyphs.text(f"  ({live})"), "bold red" if item.key.live is False else "dim")
    return [head, page.paragraph(key, indent=3)]


def _print_findings(page: Page, record: RunRecord) -> None:
    active = judgement.findings(record.verdict)
    if active:
        page.section("FINDINGS")
    for finding in active:
        print_finding(page, finding)
    resolved = judgement.findings(record.verdict, state="resolved")
    if resolved:
        page.section("RESOLVED", "held at earlier checkpoints, but not at the newest")
    for finding in resolved:
        steps = ", ".join(f"{s:,}" for s in finding.steps)
        page.line(f"{clean(finding.id)} {clean(finding.name)} at step {steps}", "dim", indent=2)


def _print_foot(page: Page, record: RunRecord, path: str | None) -> None:
    page.section("HOW THIS WAS MEASURED")
    for name, words in outline.method(record):
        page.show(page.paragraph(words, "dim", sign=f"{name:<9}", indent=2))
    page.section("NEXT")
    commands = outline.next_commands(record, path)
    widest = max(len(c) for c, _ in commands)
    if widest + max(len(why) for _, why in commands) + 4 > page.width:  # a long path
        for command, why in commands:
            page.show(Text("  ").append(command, "cyan"))
            page.line(why, "dim", indent=6)
        return
    for command, why in commands:
        page.show(
            Text("  ")
            .append(command.ljust(widest), "cyan")
            .append(page.glyphs.text(f"  {why}"), "dim")
        )
