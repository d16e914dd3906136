"""`moegeo routing`: what routing reflects."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import check_output, show_progress, stdout_console, write_payload
from moegeo_cli.cli.experts import ExpertsFormat
from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.settings import threshold_overrides


def routing(
    path: Annotated[
        Path,
        typer.Argument(help="A checkpoint; or a run: its newest one, and how it came there."),
    ],
    other: Annotated[
        Path | None,
        typer.Argument(help="Another model's checkpoint or run, on the same tokens."),
    ] = None,
    probe: o.ProbeOption = None,
    config: o.ConfigOption = None,
    pairs: Annotated[
        int,
        typer.Option(
            min=16, help="Pairs of tokens to sample, of each kind.", rich_help_panel=o.MEASURING
        ),
    ] = 8192,
    generate: Annotated[
        int,
        typer.Option(
            min=0,
            help="Continue up to 64 prompts by so many tokens with the model itself: as many "
            "passes of them.",
            rich_help_panel=o.MEASURING,
        ),
    ] = 0,
    layers: o.LayersOption = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Only these steps of a run: 0,100-500.", rich_help_panel=o.MEASURING),
    ] = None,
    latest: Annotated[
        bool,
        typer.Option(
            "--latest", help="Only the newest checkpoint of a run.", rich_help_panel=o.MEASURING
        ),
    ] = False,
    device: o.DeviceOption = "auto",
    dtype: o.DtypeOption = o.Dtype.auto,
    batch_size: o.BatchSizeOption = None,
    max_tokens: o.MaxTokensOption = None,
    stream: o.StreamOption = False,
    memory: o.MemoryOption = None,
    seed: o.SeedOption = 0,
    verify_fingerprint: o.VerifyFingerprintOption = o.Verification.sampled,
    no_cache: o.NoCacheOption = False,
    cache_dir: o.CacheDirOption = None,
    framework: o.FrameworkOption = None,
    model: o.ModelOption = None,
    router: o.RouterOption = None,
    top_k: o.TopKOption = None,
    scoring: o.ScoringOption = None,
    captures: o.CapturesOption = None,
    matrices: Annotated[
        Path | None,
        typer.Option(
            help="Also write the E×E matrices: .safetensors or .csv.", rich_help_panel=o.OUTPUT
        ),
    ] = None,
    output_format: Annotated[
        ExpertsFormat,
        typer.Option("--format", "-f", help="What stdout carries.", rich_help_panel=o.OUTPUT),
    ] = ExpertsFormat.rich,
    output: o.OutputOption = None,
) -> None:
    """What does routing reflect: hidden geometry, a shared direction, domains, depth, the prompt?

    [bold]moegeo routing runs/my-moe[/bold]
    [bold]moegeo routing runs/my-moe/checkpoint-1000 --generate 32 --format json[/bold]
    [bold]moegeo routing runs/base runs/tuned[/bold]
    """
    from moegeo_cli.reports.matrices import check_name, matrices_file

    check_output(output)
    if matrices is not None:
        check_name(matrices)  # before hours of work
        check_output(matrices)
    from moegeo_cli import api_routing

    with show_progress() as progress:
        record = api_routing.routing(
            path, other, probe=probe, config=config, pairs=pairs, generate=generate,
            layers=layers, steps=steps, latest=latest, device=device, dtype=dtype.value,
            batch_size=batch_size, max_tokens=max_tokens, stream=stream, memory=memory, seed=seed,
            model=own_model(model), router=router, top_k=top_k, scoring=scoring,
            captures=captures, cache=not no_cache, cache_dir=cache_dir,
            verify_fingerprint=verify_fingerprint.value, framework=framework,
            thresholds=threshold_overrides(), progress=progress,
        )  # fmt: skip
    if matrices is not None:
        write_payload(matrices_file(record, matrices), matrices)
    from moegeo_cli.reports import json_report, routing_report

    if output_format is ExpertsFormat.rich and output is None:
        routing_report.print_routing(record, stdout_console())
        return
    if output_format is ExpertsFormat.json:
        text = json_report.render(record)
    elif output_format is ExpertsFormat.markdown:
        text = routing_report.render_markdown(record)
    else:
        text = routing_report.render(record)
    write_payload(text, output)
