"""`moegeo compare`: two runs side by side at matched progress."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import check_output, say, show_progress, stdout_console, write_payload
from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.settings import threshold_overrides


class Axis(StrEnum):
    """What progress is counted in."""

    tokens = "tokens"
    step = "step"
    fraction = "fraction"


def compare(
    context: typer.Context,
    run_a: Annotated[Path, typer.Argument(help="A run, or one checkpoint.")],
    run_b: Annotated[Path, typer.Argument(help="The other.")],
    by: Annotated[
        Axis | None,
        typer.Option(
            "--by",
            help="Match by this. Default: tokens where both record them, else step.",
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Compare although probes or estimators differ; then without intervals.",
            rich_help_panel=o.MEASURING,
        ),
    ] = False,
    probe: o.ProbeOption = None,
    config: o.ConfigOption = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What FHS compares with: a STEP, a PATH, init or none. "
            "Default: each run's step 0.",
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    fisher: o.FisherOption = o.FisherKind.empirical,
    unit: o.UnitOption = o.Unit.position,
    layers: o.LayersOption = None,
    device: o.DeviceOption = "auto",
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = o.Dtype.auto,
    batch_size: o.BatchSizeOption = None,
    max_tokens: o.MaxTokensOption = None,
    stream: o.StreamOption = False,
    memory: o.MemoryOption = None,
    seed: o.SeedOption = 0,
    no_cache: o.NoCacheOption = False,
    cache_dir: o.CacheDirOption = None,
    verify_fingerprint: o.VerifyFingerprintOption = o.Verification.sampled,
    policy: o.PolicyOption = o.Policy.calibrated,
    model: o.ModelOption = None,
    router: o.RouterOption = None,
    top_k: o.TopKOption = None,
    scoring: o.ScoringOption = None,
    output_format: o.FormatOption = o.Format.rich,
    output: o.OutputOption = None,
) -> None:
    """Set two runs side by side at matched progress: how they differ, which is healthier, why.

    [bold]moegeo compare runs/old runs/new[/bold]
    [bold]moegeo compare runs/old runs/new --by tokens --format json[/bold]
    """
    from moegeo_cli import api

    check_output(output)
    with show_progress() as progress:
        record = api.compare(
            run_a,
            run_b,
            by=by.value if by else None,
            force=force,
            probe=probe,
            config=config,
            baseline=baseline,
            fisher=fisher.value,
            unit=unit.value,
            layers=layers,
            device=device,
            device_map=device_map,
            dtype=dtype.value,
            batch_size=batch_size,
            max_tokens=max_tokens,
            stream=stream,
            memory=memory,
            seed=seed,
            cache=not no_cache,
            cache_dir=cache_dir,
            verify_fingerprint=verify_fingerprint.value,
            policy=policy.value,
            thresholds=threshold_overrides(),
            model=own_model(model),
            router=router,
            top_k=top_k,
            scoring=scoring,
            progress=progress,
            ranks=context.obj,
        )
    from moegeo_cli.reports import print_comparison, render

    if output_format is o.Format.rich and output is None:
        print_comparison(record, stdout_console())
        return
    write_payload(render(record, output_format.value), output)
    healthier = record.healthier.upper() if record.healthier else "no difference shown"
    say(f"healthier: {healthier}; {record.reason}")
