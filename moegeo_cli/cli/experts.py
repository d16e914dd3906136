"""`moegeo experts`: how alike experts are, by what they do and by what they see."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import check_output, show_progress, stdout_console, write_payload
from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.settings import threshold_overrides


class ExpertsFormat(StrEnum):
    """What stdout carries."""

    rich = "rich"
    json = "json"
    markdown = "markdown"


class Tokens(StrEnum):
    """Which tokens count for a pair of experts."""

    routed = "routed"
    coselected = "coselected"
    all = "all"


class Weights(StrEnum):
    """What weighs an expert's tokens."""

    topk = "topk"
    soft = "soft"


def experts(
    path: Annotated[Path, typer.Argument(help="A checkpoint, or a run: then its newest one.")],
    probe: o.ProbeOption = None,
    config: o.ConfigOption = None,
    tokens: Annotated[
        Tokens,
        typer.Option(
            help="Tokens behind a pair's alignment: routed to either, to both, or all.",
            rich_help_panel=o.MEASURING,
        ),
    ] = Tokens.routed,
    weights: Annotated[
        Weights,
        typer.Option(
            help="Weigh tokens by the dispatch, or by the whole routing distribution: "
            "a reweighting of the same model.",
            rich_help_panel=o.MEASURING,
        ),
    ] = Weights.topk,
    rank: Annotated[
        float,
        typer.Option(
            help="Dimensions of the subspaces; below 1 the share of variance to explain.",
            rich_help_panel=o.MEASURING,
        ),
    ] = 8,
    jacobian_tokens: Annotated[
        int,
        typer.Option(min=2, help="Tokens with Jacobians.", rich_help_panel=o.MEASURING),
    ] = 256,
    directions: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Random directions a token; 0 for whole Jacobians. Default: whole where cheap.",
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    verify: Annotated[
        int,
        typer.Option(
            min=0,
            help="Merge, then silence, the top N in memory; measure the loss beside as many "
            "random choices, choices by overlap and by weight cosine.",
            rich_help_panel=o.MEASURING,
        ),
    ] = 0,
    layers: o.LayersOption = None,
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
    """How alike are the experts, in what they do and in what they see; which to merge or prune.

    [bold]moegeo experts runs/my-moe/checkpoint-1000[/bold]
    [bold]moegeo experts runs/my-moe --verify 4 --matrices pairs.safetensors[/bold]
    """
    from moegeo_cli.reports.matrices import check_name, matrices_file

    if matrices is not None:
        check_name(matrices)  # before hours of work
    check_output(matrices)
    check_output(output)
    from moegeo_cli import api_experts

    with show_progress() as progress:
        record = api_experts.experts(
            path, probe=probe, config=config, tokens=tokens.value, weights=weights.value, rank=rank,
            jacobian_tokens=jacobian_tokens, directions=directions, verify=verify, layers=layers,
            device=device, dtype=dtype.value, batch_size=batch_size, max_tokens=max_tokens,
            stream=stream, memory=memory, seed=seed, cache=not no_cache, cache_dir=cache_dir,
            verify_fingerprint=verify_fingerprint.value, framework=framework,
            thresholds=threshold_overrides(), model=own_model(model), router=router, top_k=top_k,
            scoring=scoring, captures=captures, progress=progress,
        )  # fmt: skip
    if matrices is not None:
        write_payload(matrices_file(record, matrices), matrices)
    from moegeo_cli.reports import experts_report, json_report

    if output_format is ExpertsFormat.rich and output is None:
        experts_report.print_experts(record, stdout_console())
        return
    if output_format is ExpertsFormat.json:
        text = json_report.render(record)
    elif output_format is ExpertsFormat.markdown:
        text = experts_report.render_markdown(record)
    else:
        text = experts_report.render(record)
    write_payload(text, output)
