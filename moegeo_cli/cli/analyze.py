"""`moegeo analyze`: measure a run's checkpoints, judge it, say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moegeo_cli.cli import options as o
from moegeo_cli.cli.console import check_output, say, show_progress, stdout_console, write_payload
from moegeo_cli.cli.gates import gate, write_step_summary
from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.settings import threshold_overrides
from moegeo_cli.errors import UsageError

if TYPE_CHECKING:
    from moegeo_cli.records import RunRecord


def analyze(
    context: typer.Context,
    path: Annotated[
        Path, typer.Argument(help="One checkpoint, or a run: a folder of checkpoints.")
    ],
    probe: o.ProbeOption = None,
    config: o.ConfigOption = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="What FHS compares with: a STEP, a PATH, init (fresh initialisations) or "
            "none. Default: the run's step 0.",
            rich_help_panel=o.MEASURING,
        ),
    ] = None,
    fisher: o.FisherOption = o.FisherKind.empirical,
    unit: o.UnitOption = o.Unit.position,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact",
            help="The exact unit loss_token: a backward per token, slow.",
            rich_help_panel=o.MEASURING,
        ),
    ] = False,
    layers: o.LayersOption = None,
    steps: Annotated[
        str | None,
        typer.Option(help="Only these steps: 0,100-500.", rich_help_panel=o.MEASURING),
    ] = None,
    latest: Annotated[
        bool,
        typer.Option(
            "--latest",
            help="Only the newest checkpoint (and the baseline).",
            rich_help_panel=o.MEASURING,
        ),
    ] = False,
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
    reference: Annotated[
        Path | None,
        typer.Option(help="A healthy run to judge the loss against.", rich_help_panel=o.JUDGING),
    ] = None,
    policy: o.PolicyOption = o.Policy.calibrated,
    framework: o.FrameworkOption = None,
    model: o.ModelOption = None,
    router: o.RouterOption = None,
    top_k: o.TopKOption = None,
    scoring: o.ScoringOption = None,
    captures: o.CapturesOption = None,
    fail_on: o.FailOnOption = o.FailOn.never,
    output_format: o.FormatOption = o.Format.rich,
    output: o.OutputOption = None,
) -> int:
    """Measure a run's checkpoints, judge the run, and say what to do.

    [bold]moegeo analyze runs/my-moe[/bold]
    [bold]moegeo analyze runs/my-moe --latest --fail-on failing --format json[/bold]
    """
    from moegeo_cli import api

    if exact and unit is o.Unit.sequence:
        raise UsageError("--exact is the unit loss_token", found="--exact with --unit sequence")
    check_output(output)
    with show_progress() as progress:
        record = api.analyze(
            path,
            probe=probe,
            config=config,
            baseline=baseline,
            fisher=fisher.value,
            unit=o.Unit.loss_token.value if exact else unit.value,
            layers=layers,
            steps=steps,
            latest=latest,
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
            reference=reference,
            policy=policy.value,
            framework=framework,
            thresholds=threshold_overrides(),
            model=own_model(model),
            router=router,
            top_k=top_k,
            scoring=scoring,
            captures=captures,
            progress=progress,
            ranks=context.obj,
        )
    emit(record, output_format, output, path)
    return gate(record.verdict, fail_on)


def emit(record: RunRecord, output_format: o.Format, output: Path | None, path: Path) -> None:
    """The report, in the format asked for."""
    from moegeo_cli.reports import print_run, render

    if output_format is o.Format.rich and output is None:
        print_run(record, stdout_console(), str(path))
        return
    write_payload(render(record, output_format.value), output)
    if output_format is o.Format.github:
        write_step_summary(record)
    if record.verdict is not None:
        verdict = record.verdict
        say(f"verdict: {verdict.status} (routing {verdict.routing}, "
            f"performance {verdict.performance}); {verdict.policy} policy")  # fmt: skip
