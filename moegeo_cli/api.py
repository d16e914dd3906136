"""The Python API, which the command line itself uses: paths in, records out, nothing printed.

from moegeo_cli import analyze
run = analyze("runs/my-moe")
run.verdict.status
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moegeo_cli.api_check import check_files
from moegeo_cli.checkpoints.inspection import inspect_checkpoint
from moegeo_cli.errors import UsageError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.measurement.choosing import parse_ranges
from moegeo_cli.measurement.comparing import check_axis, compare_runs, pair_losses
from moegeo_cli.measurement.filling import fill_tree
from moegeo_cli.measurement.lenses import lens_notes
from moegeo_cli.measurement.models import choose_models
from moegeo_cli.measurement.opening import add_notes, measure_path
from moegeo_cli.measurement.probe import MINIMUM_TOKENS, default_tokens, open_probe
from moegeo_cli.measurement.run import Listener
from moegeo_cli.measurement.settings import Settings, parse_bytes, read_device_map
from moegeo_cli.records import Metric, RunRecord
from moegeo_cli.records.comparison import ComparisonRecord, SharedBytes
from moegeo_cli.triage.run import FilesChecked
from moegeo_cli.triage.sharing import share
from moegeo_cli.verdict import judge, load_thresholds, recommend
from moegeo_cli.verdict.interventions import check_framework

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks

POLICIES = ("calibrated", "paper")


@keeps_global_state
def analyze(
    path: Path | str,
    *,
    probe: Path | str | None = None,
    config: Path | str | None = None,
    baseline: str | None = None,
    fisher: str = "empirical",
    unit: str = "position",
    layers: str | Sequence[int] | None = None,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
    device: str = "auto",
    device_map: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    stream: bool = False,
    memory: str | int | None = None,
    seed: int = 0,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    verify_fingerprint: str = "sampled",
    reference: Path | str | None = None,
    policy: str = "calibrated",
    framework: str | None = None,
    thresholds: Mapping[str, Any] | Path | str | None = None,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    captures: Path | str | None = None,
    progress: Listener | None = None,
    ranks: Ranks | None = None,
) -> RunRecord:
    """Measure the checkpoints of a run, judge the run, and recommend what to change.

    Args:
        path: one checkpoint, or a folder of them.
        probe: a probe file; None for the bundled one.
        config: a config.json, or a folder with one and the tokenizer, for checkpoints that have
            none of their own; None to look beside and above them. Of an adapter that lies alone,
            the folder of its base model.
        baseline: what FHS compares with: a step, a path, "init", "none"; None for step 0.
        fisher: kind behind `heterogeneity*` and `fhs*`: empirical, categorical or adam.
        unit: sample unit of the empirical kind: position, sequence or loss_token.
        layers: only these decoder layers, like "0,4-7" or [0, 4].
        steps: only these steps, like "0,100-500".
        latest: only the newest checkpoint, and the baseline.
        device: auto, cpu, cuda, …
        device_map: a model in parts, placed by accelerate: auto, cpu, disk, a JSON object of
            module and device, or a file of it; None for one device.
        dtype: auto (as saved), float32, bfloat16 or float16.
        batch_size: sequences a batch; None for about 2,048 tokens.
        max_tokens: probe tokens; None for what the dead-expert test needs, at least 8,192.
        stream: read layers from the files while they compute, even where the model would fit.
        memory: stay within so much, like "8GB" or in bytes; streams where that needs it.
        seed: of resampling, sampling and fresh initialisations.
        cache: read and keep measurements.
        cache_dir: where; None for `.moegeo` in the run.
        verify_fingerprint: "sampled", or "full" to hash every byte of the files.
        reference: a healthy run to judge the loss against.
        policy: "calibrated" or "paper".
        framework: whose keys interventions name; None to find it from the checkpoint.
        thresholds: overrides, as a table or the path of a TOML file.
        model: what builds a model of your own: a callable, or "package.module:name".
        router: its routers, by a pattern over module names; None to find them by structure.
        top_k: experts a token, where its config does not say.
        scoring: softmax, sigmoid or sqrt_softplus, where its config does not say.
        captures: router inputs captured earlier; then no model is built, and no probe is read.
        progress: hears how far the work is.
        ranks: who shares the probe, on rank 0 (the others serve); None for this process alone.

    Returns:
        The run with its checkpoints, verdict and interventions.

    Raises:
        MoegeoError: bad input, by its subclasses; `errors.py` lists them.
    """
    limits = load_thresholds(thresholds)
    check_framework(framework)
    _refuse_no_tokens(max_tokens)
    if policy not in POLICIES:
        raise UsageError(f"--policy is not one of {', '.join(POLICIES)}", found=repr(policy))
    settings = Settings(
        fisher, unit, device, dtype, batch_size, parse_ranges(layers, "--layers"), seed,
        stream, parse_bytes(memory), read_device_map(device_map),
    )  # fmt: skip
    models = choose_models(model, router, top_k, scoring, captures, config)
    if captures is not None and (fisher == "adam" or baseline == "init"):
        raise UsageError(
            "routers alone have neither an optimizer's state nor fresh initialisations",
            found="--captures with --fisher adam"
            if fisher == "adam"
            else "--captures with --baseline init",
            hint="use --fisher categorical, and --baseline STEP, PATH or none",
        )
    if max_tokens is None and reference is not None:  # paired: both need the same draw
        max_tokens = max(default_tokens(models.open(p), models) for p in (path, reference))
    shared: dict[str, Any] = {
        "models": models, "settings": settings, "probe": probe, "max_tokens": max_tokens,
        "verify_fingerprint": verify_fingerprint, "progress": progress, "ranks": ranks,
    }  # fmt: skip
    chosen: dict[str, Any] = {"steps": steps, "latest": latest}
    kept: dict[str, Any] = {"cache": cache, "cache_dir": cache_dir}
    told: list[FilesChecked] = []
    measured = measure_path(
        path, baseline=baseline, **chosen, **kept, **shared,
        before=lambda: told.append(
            check_files(path, models, limits, verify_fingerprint=verify_fingerprint,
                        progress=progress, **chosen, **kept)
        ),
    )  # fmt: skip
    [files] = told
    run = measured.record
    other: RunRecord | None = None
    losses: dict[str, Metric] = {}
    if reference is not None:
        healthy = measure_path(reference, cache=cache, cache_dir=cache_dir, baseline=None, **shared)
        other = judge(healthy.record, policy=policy, thresholds=limits)
        losses = pair_losses(measured, healthy, settings)
    settings_said = {
        **run.settings,
        "policy": policy,
        "reference": None if reference is None else Path(reference).name,
    }
    run = dataclasses.replace(run, settings=settings_said)
    lenses = measured.lenses()
    run = add_notes(run, lens_notes(lenses[run.newest.path]))
    run = judge(run, reference=other, policy=policy, thresholds=limits, paired_losses=losses,
                lenses=lenses, files=files.outcomes)  # fmt: skip
    assert run.verdict is not None
    return dataclasses.replace(run, interventions=recommend(run, run.verdict.findings, framework))


@keeps_global_state
def compare(
    run_a: Path | str,
    run_b: Path | str,
    *,
    by: str | None = None,
    force: bool = False,
    probe: Path | str | None = None,
    config: Path | str | None = None,
    baseline: str | None = None,
    fisher: str = "empirical",
    unit: str = "position",
    layers: str | Sequence[int] | None = None,
    device: str = "auto",
    device_map: str | None = None,
    dtype: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    stream: bool = False,
    memory: str | int | None = None,
    seed: int = 0,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    verify_fingerprint: str = "sampled",
    policy: str = "calibrated",
    thresholds: Mapping[str, Any] | Path | str | None = None,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    progress: Listener | None = None,
    ranks: Ranks | None = None,
) -> ComparisonRecord:
    """Set two runs side by side at matched progress.

    Args:
        run_a: a run, or one checkpoint.
        run_b: the other.
        by: match by "tokens", "step" or "fraction"; None for tokens where both record them,
            else step.
        force: compare although the probes or estimators differ; then without intervals.
        probe: as in `analyze`, as are all that follow.
        config: likewise.
        baseline: likewise.
        fisher: likewise.
        unit: likewise.
        layers: likewise.
        device: likewise.
        device_map: likewise.
        dtype: likewise.
        batch_size: likewise.
        max_tokens: likewise; None for what the larger need of the two runs is.
        stream: likewise.
        memory: likewise.
        seed: likewise.
        cache: likewise.
        cache_dir: likewise.
        verify_fingerprint: likewise.
        policy: likewise.
        thresholds: likewise.
        model: likewise.
        router: likewise.
        top_k: likewise.
        scoring: likewise.
        progress: likewise.
        ranks: likewise.

    Returns:
        Differences, b minus a, with intervals paired by probe sequence; which run is
        healthier, and why.

    Raises:
        MoegeoError: bad input, or runs that cannot be compared.
    """
    limits = load_thresholds(thresholds)
    _refuse_no_tokens(max_tokens)
    settings = Settings(
        fisher, unit, device, dtype, batch_size, parse_ranges(layers, "--layers"), seed,
        stream, parse_bytes(memory), read_device_map(device_map),
    )  # fmt: skip
    models = choose_models(model, router, top_k, scoring, config=config)
    runs = [models.open(path) for path in (run_a, run_b)]
    check_axis(runs, by)
    if max_tokens is None:  # paired: both need the same draw, of any probe
        max_tokens = max(default_tokens(run, models) for run in runs)
    a, b = (
        measure_path(path, cache=cache, cache_dir=cache_dir, baseline=baseline, settings=settings,
                 probe=probe, max_tokens=max_tokens, verify_fingerprint=verify_fingerprint,
                 models=models, progress=progress, ranks=ranks)
        for path in (run_a, run_b)
    )  # fmt: skip
    files = tuple(
        check_files(path, models, limits, cache=cache, cache_dir=cache_dir,
                    verify_fingerprint=verify_fingerprint, progress=progress)
        for path in (run_a, run_b)
    )  # fmt: skip
    judged = (
        judge(a.record, policy=policy, thresholds=limits, files=files[0].outcomes),
        judge(b.record, policy=policy, thresholds=limits, files=files[1].outcomes),
    )

    def shared(one: str, other: str) -> SharedBytes | None:
        sums = files[0].sums.get(one), files[1].sums.get(other)
        return None if sums[0] is None or sums[1] is None else share(sums[0], sums[1])

    return compare_runs(a, b, judged, settings, by=by, force=force, shared=shared)


@keeps_global_state
def inspect(
    path: Path | str,
    config: Path | str | None = None,
    *,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
) -> dict[str, Any]:
    """What a checkpoint or a run is, from headers alone; loads no model and imports no torch.

    Args:
        path: a checkpoint or a run.
        config: as in `analyze`, as are all that follow.
        model: likewise; it is named in the answer, not built.
        router: likewise.
        top_k: likewise.
        scoring: likewise.

    Raises:
        MoegeoError: no checkpoint there, or a damaged one.
    """
    models = choose_models(model, router, top_k, scoring, config=config)
    return inspect_checkpoint(Path(path), None if model is None else models, config, fill_tree)


@keeps_global_state
def invariance(
    path: Path | str,
    *,
    probe: Path | str | None = None,
    config: Path | str | None = None,
    fisher: str = "empirical",
    unit: str = "position",
    device: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Which numbers of a checkpoint survive rewritings that leave its outputs unchanged.

    Args:
        path: a checkpoint, or a run: then its newest one.
        probe: as in `analyze`, as are all that follow.
        config: likewise.
        fisher: likewise.
        unit: likewise.
        device: likewise.
        batch_size: likewise.
        max_tokens: likewise; None for 8,192.
        seed: also of the rewritings.
        model: likewise.
        router: likewise.
        top_k: likewise.
        scoring: likewise.
        progress: likewise.

    Returns:
        `name`, `checkpoint`, `model_type`, `probe`, `settings`, and `invariance`: one entry a
        transformation.

    Raises:
        MoegeoError: bad input.
    """
    from moegeo_cli.measurement.invariance import measure_invariance

    _refuse_no_tokens(max_tokens)
    models = choose_models(model, router, top_k, scoring, config=config)
    folder = models.open(path)
    document, architecture = models.describe(folder.newest.path)
    if fisher == "adam":
        raise UsageError(
            "an optimizer's state is of the weights as they were saved",
            found="--fisher adam",
            hint="use --fisher empirical or categorical",
        )
    loaded = open_probe(folder, probe, max_tokens or MINIMUM_TOKENS, models)
    settings = Settings(fisher, unit, device, "float32", batch_size, None, seed)
    models.check(folder.newest.path, architecture)
    return {
        "name": folder.newest.path.resolve().name,
        "checkpoint": folder.newest.relative,
        "model_type": architecture.model_type,
        "probe": loaded.describe(),
        "settings": dataclasses.asdict(settings),
        "invariance": measure_invariance(
            folder.newest, architecture, document, loaded, settings, progress, models
        ),
    }


def _refuse_no_tokens(max_tokens: int | None) -> None:
    if max_tokens is not None and max_tokens < 1:
        raise UsageError("at least one probe token is needed", found=f"max_tokens {max_tokens}")
