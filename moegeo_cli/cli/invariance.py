"""`moegeo invariance`: which numbers survive a change of basis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import show_progress, stdout_console, write_payload
from moegeo_cli.cli.inspect import InspectFormat

MUST_HOLD = ("fsi", "collapse", "dispersion")


def invariance(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: then its newest one.")],
    probe: o.ProbeOption = None,
    fisher: o.FisherOption = o.FisherKind.empirical,
    unit: o.UnitOption = o.Unit.position,
    device: o.DeviceOption = "auto",
    batch_size: o.BatchSizeOption = None,
    max_tokens: o.MaxTokensOption = None,
    seed: o.SeedOption = 0,
    output_format: Annotated[
        InspectFormat,
        typer.Option("--format", "-f", help="What stdout carries.", rich_help_panel=o.OUTPUT),
    ] = InspectFormat.rich,
    output: o.OutputOption = None,
) -> None:
    """Rewrite the weights without changing the outputs; say which numbers stay and which do not.

    [bold]moegeo invariance runs/my-moe/checkpoint-1000[/bold]
    """
    from moegeo_cli import api

    with show_progress() as progress:
        found = api.invariance(
            path, probe=probe, fisher=fisher.value, unit=unit.value, device=device,
            batch_size=batch_size, max_tokens=max_tokens, seed=seed, progress=progress,
        )  # fmt: skip
    if output_format is InspectFormat.json or output is not None:
        document = {"format": {"name": "moegeo.invariance", "version": 1}, **found}
        write_payload(json.dumps(document, indent=2, allow_nan=False), output)
        return
    print_invariance(found)


def print_invariance(found: dict[str, Any]) -> None:
    """One row a metric, one column a transformation that applies; the others by name."""
    from rich.table import Table
    from rich.text import Text

    from moegeo_cli.reports.figures import label, number

    console = stdout_console()
    probe = found["probe"]
    console.print(
        Text(f"{found['checkpoint']} ({found['model_type']}), {probe['tokens']:,} probe tokens: "
             "relative change of each metric when the weights are rewritten and the outputs stay")
    )  # fmt: skip
    entries = found["invariance"]
    applied = [e for e in entries if e["applicable"]]
    console.print()
    if applied:
        table = Table(box=None, pad_edge=False)
        table.add_column("metric", style="bold")
        table.add_column("as it is", justify="right")
        for entry in applied:
            table.add_column(entry["name"], justify="right", overflow="fold")
        for name, first in applied[0]["metrics"].items():
            row = ["–" if first["before"] is None else number(first["before"])]
            for entry in applied:
                change = entry["metrics"][name]["relative_change"]
                row.append("–" if change is None else _change(change))
            mark = " *" if name in MUST_HOLD else ""
            table.add_row(label(name) + mark, *row)
        table.add_section()
        table.add_row("outputs moved by", "", *(f"{e['logits_deviation']:.0e}" for e in applied))
        table.add_row("* and findings hold", "", *("yes" if e["held"] else "NO" for e in applied))
        table.add_row(
            "paper policy", applied[0]["paper"]["before"], *(e["paper"]["after"] for e in applied)
        )
        console.print(table)
    for entry in entries:
        if not entry["applicable"]:
            console.print(Text(f"{entry['name']}: not applicable: {entry['reason']}"))


def _change(change: float) -> str:
    return (
        "0" if abs(change) < 5e-7 else f"{change:+.1e}" if abs(change) < 1e-3 else f"{change:+.1%}"
    )
