"""`moegeo check`: what the files of a checkpoint or a run tell by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import check_output, say, show_progress, stdout_console, write_payload
from moegeo_cli.cli.gates import gate, write_step_summary
from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.settings import threshold_overrides


def check(
    path: Annotated[
        Path, typer.Argument(help="One checkpoint, or a run: a folder of checkpoints.")
    ],
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Read routers, biases and norms alone; experts are not looked at.",
            rich_help_panel=o.MEASURING,
        ),
    ] = False,
    config: o.ConfigOption = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Only these steps: 0,100-500.", rich_help_panel=o.MEASURING),
    ] = None,
    latest: Annotated[
        bool,
        typer.Option(
            "--latest",
            help="Only the newest checkpoint: nothing that needs two is told.",
            rich_help_panel=o.MEASURING,
        ),
    ] = False,
    no_cache: o.NoCacheOption = False,
    cache_dir: o.CacheDirOption = None,
    verify_fingerprint: o.VerifyFingerprintOption = o.Verification.sampled,
    framework: o.FrameworkOption = None,
    model: o.ModelOption = None,
    router: o.RouterOption = None,
    top_k: o.TopKOption = None,
    scoring: o.ScoringOption = None,
    fail_on: o.FailOnOption = o.FailOn.never,
    output_format: o.FormatOption = o.Format.rich,
    output: o.OutputOption = None,
) -> int:
    """Check the files alone: frozen or lost weights, copies, biases. No model, no data, no GPU.

    [bold]moegeo check runs/my-moe[/bold]
    [bold]moegeo check runs/my-moe/checkpoint-1000 --quick --fail-on watch[/bold]
    """
    from moegeo_cli import api_check
    from moegeo_cli.reports import print_check, render

    check_output(output)
    with show_progress() as progress:
        record = api_check.check(
            path, quick=quick, config=config, steps=steps, latest=latest, cache=not no_cache,
            cache_dir=cache_dir, verify_fingerprint=verify_fingerprint.value, framework=framework,
            thresholds=threshold_overrides(), model=own_model(model), router=router, top_k=top_k,
            scoring=scoring, progress=progress,
        )  # fmt: skip
    if output_format is o.Format.rich and output is None:
        print_check(record, stdout_console(), str(path))
        return gate(record.verdict, fail_on)
    write_payload(render(record, output_format.value), output)
    if output_format is o.Format.github:
        write_step_summary(record)
    if record.verdict is not None:
        say(f"verdict: {record.verdict.status}, by the files alone")
    return gate(record.verdict, fail_on)
