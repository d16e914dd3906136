"""`moegeo watch`: print one line per checkpoint while a run trains."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moegeo_cli.cli.console import say
from moegeo_cli.cli.interrupts import raise_pending
from moegeo_cli.cli.options import with_options
from moegeo_cli.errors import MoegeoError
from moegeo_cli.registry import find_command
from moegeo_cli.reports.escaping import clean

if TYPE_CHECKING:
    from moegeo_cli.commands.watch.api import Sighting
    from moegeo_cli.records import Metric, RunRecord
    from moegeo_cli.sinks import Place


@with_options(*find_command("watch").groups)
def watch(
    path: Annotated[Path, typer.Argument(help="A run: a folder that gets new checkpoints.")],
    options: dict[str, Any],
    output_options: dict[str, Any],
) -> None:
    """Follow a run while it trains: one line per checkpoint, and a bell when the verdict changes.

    Ctrl-C ends it. A checkpoint is read once it is completely written.

    [bold]moegeo watch runs/my-moe[/bold]
    [bold]moegeo watch runs/my-moe --log tensorboard:tb --on-change 'notify-send moegeo'[/bold]
    """
    from moegeo_cli.commands.watch.api import watch as follow
    from moegeo_cli.sinks import open_places

    places = open_places(output_options["log"])
    say(f"watching {clean(str(path))} every {options['interval']:g} s; Ctrl-C ends it")
    logged: RunRecord | None = None
    for seen in follow(path, progress=QuietProgress(), **options):
        if seen.run is not logged:
            logged = seen.run
            log_safely(logged, places)
        print(f"{describe(seen)}{ring() if seen.changed else ''}", flush=True)
        if seen.changed and output_options["on_change"]:
            run_command(output_options["on_change"], path, seen)


def log_safely(run: RunRecord, places: Sequence[Place]) -> None:
    """Write the scalars. A failure is printed; the next checkpoint tries again."""
    from moegeo_cli.sinks import log_run

    try:
        log_run(run, places)
    except MoegeoError as error:
        say(f"error[{error.code}]: {clean(error.message)}: {clean(error.found or '')}")


def ring() -> str:
    """The bell character on a terminal; "" elsewhere."""
    return "\a" if sys.stdout.isatty() else ""


def describe(seen: Sighting) -> str:
    """The line of a checkpoint: step, verdict, four metrics, and why the verdict changed."""
    metrics, step = seen.checkpoint.metrics, seen.checkpoint.step
    numbers = "  ".join(
        f"{label} {_number(metric, decimals)}"
        for label, metric, decimals in (
            ("loss", seen.checkpoint.loss, 3),
            ("FSI", metrics.get("fsi"), 3),
            ("effective experts", metrics.get("effective_experts"), 1),
            ("dead", metrics.get("dead_experts"), 0),
        )
    )
    place = clean(seen.checkpoint.path) if step is None else f"step {step}"
    line = f"{place:<12}  {seen.verdict.status:<12}  {numbers}"
    return f"{line}  {clean('; '.join(_change(seen)))}".rstrip()


def _change(seen: Sighting) -> Iterator[str]:
    """If the verdict changed: the previous one, and the first reason for the new one."""
    if seen.changed:
        yield f"was {seen.before}"
        yield from seen.verdict.reasons[:1]


def _number(metric: Metric | None, decimals: int) -> str:
    return "-" if metric is None or metric.value is None else f"{metric.value:.{decimals}f}"


def run_command(command: str, path: Path, seen: Sighting) -> None:
    """Run the user's command after a change of the verdict, and wait for it to end.

    A failure is printed.
    """
    step = seen.checkpoint.step
    variables = {
        "MOEGEO_RUN": str(path),
        "MOEGEO_STEP": "" if step is None else str(step),
        "MOEGEO_VERDICT": seen.verdict.status,
        "MOEGEO_BEFORE": seen.before or "",
    }
    done = subprocess.run(
        command, shell=True, env={**os.environ, **variables}, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        say(f"--on-change ended with exit code {done.returncode}")


class QuietProgress:
    """Prints a line per measured checkpoint on a terminal only, and each note once."""

    def __init__(self) -> None:
        self.printed: set[str] = set()

    def begin(self, title: str, count: int, noun: str = "checkpoint") -> None:
        """A run starts."""

    def checkpoint(self, name: str, tokens: int, note: str) -> None:
        """A checkpoint starts."""
        raise_pending()
        if tokens and sys.stderr.isatty():
            say(f"  measuring {clean(name)}")

    def advance(self, tokens: int) -> None:
        """Tokens were replayed."""
        raise_pending()

    def note(self, text: str) -> None:
        """Print a note, once."""
        if text not in self.printed:
            say(f"  {clean(text)}")
        self.printed.add(text)
