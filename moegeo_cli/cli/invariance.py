"""`moegeo invariance`: which numbers survive a change of basis."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import check_output, show_progress, stdout_console, write_payload
from moegeo_cli.cli.inspect import InspectFormat
from moegeo_cli.cli.models import own_model


def invariance(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: then its newest one.")],
    probe: o.ProbeOption = None,
    config: o.ConfigOption = None,
    fisher: o.FisherOption = o.FisherKind.empirical,
    unit: o.UnitOption = o.Unit.position,
    device: o.DeviceOption = "auto",
    batch_size: o.BatchSizeOption = None,
    max_tokens: o.MaxTokensOption = None,
    seed: o.SeedOption = 0,
    model: o.ModelOption = None,
    router: o.RouterOption = None,
    top_k: o.TopKOption = None,
    scoring: o.ScoringOption = None,
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

    check_output(output)
    with show_progress() as progress:
        found = api.invariance(
            path, probe=probe, config=config, fisher=fisher.value, unit=unit.value, device=device,
            batch_size=batch_size, max_tokens=max_tokens, seed=seed, model=own_model(model),
            router=router, top_k=top_k, scoring=scoring, progress=progress,
        )  # fmt: skip
    if output_format is InspectFormat.json or output is not None:
        document = {"format": {"name": "moegeo.invariance", "version": 1}, **found}
        write_payload(json.dumps(document, indent=2, allow_nan=False), output)
        return
    from moegeo_cli.reports.inspection import print_invariance

    print_invariance(found, stdout_console())
