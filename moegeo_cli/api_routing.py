"""`routing` of the Python API: what a checkpoint's routing reflects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.measurement.choosing import choose_checkpoints, parse_ranges
from moegeo_cli.measurement.lenses import describe_run, keep_lens
from moegeo_cli.measurement.models import choose_models
from moegeo_cli.measurement.probe import default_tokens, open_probe
from moegeo_cli.measurement.routing_settings import DEFAULT_PAIRS, RoutingSettings
from moegeo_cli.measurement.run import Listener
from moegeo_cli.measurement.settings import parse_bytes
from moegeo_cli.measurement.storing import NOT_KEPT, open_store
from moegeo_cli.records.routing import RoutingRecord
from moegeo_cli.verdict import load_thresholds
from moegeo_cli.verdict.interventions import check_framework
from moegeo_cli.verdict.lenses import judge_lens


@keeps_global_state
def routing(
    path: Path | str,
    other: Path | str | None = None,
    *,
    probe: Path | str | None = None,
    config: Path | str | None = None,
    pairs: int = DEFAULT_PAIRS,
    generate: int = 0,
    layers: str | Sequence[int] | None = None,
    steps: str | Sequence[int] | None = None,
    latest: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    stream: bool = False,
    memory: str | int | None = None,
    seed: int = 0,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    captures: Path | str | None = None,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    verify_fingerprint: str = "sampled",
    framework: str | None = None,
    thresholds: Mapping[str, Any] | Path | str | None = None,
    progress: Listener | None = None,
) -> RoutingRecord:
    """What routing reflects: geometry, shared directions, domains, depth, prompts, another model.

    Args:
        path: a checkpoint; or a run: then its newest one in full, and how it came there.
        other: another checkpoint (or a run: its newest one), held against the first on the same
            tokens; then only the newest checkpoint of `path` counts.
        probe: a probe file; None for the bundled one.
        config: a config.json, or a folder with one and the tokenizer, for checkpoints that have
            none of their own; None to look beside and above them.
        pairs: of tokens that are sampled, of each kind.
        generate: continue up to 64 prompts of the probe by so many tokens with the model itself.
        layers: only these decoder layers, like "0,4-7".
        steps: only these steps of a run, like "0,100-500".
        latest: only the newest checkpoint of a run.
        device: auto, cpu, cuda, …
        dtype: auto (as saved), float32, bfloat16 or float16.
        batch_size: sequences a batch; None for about 2,048 tokens.
        max_tokens: probe tokens; None for what `analyze` takes.
        stream: read layers from the files while they compute, even where the model would fit.
        memory: stay within so much while replaying, like "8GB"; streams where that needs it.
        seed: of sampling, resampling, permutations and generated tokens.
        model: what builds a model of your own, as in `analyze`; so do the next three.
        router: likewise.
        top_k: likewise.
        scoring: likewise.
        captures: router inputs captured earlier; then no model is built, and no probe is read.
        cache: keep what was measured, for `analyze` to judge the run by.
        cache_dir: where; None for `.moegeo` in the run.
        verify_fingerprint: as in `analyze`; it looks up what was kept with the same one.
        framework: whose keys interventions name; None to find it from the checkpoint.
        thresholds: overrides, as a table or the path of a TOML file.
        progress: hears how far the work is.

    Returns:
        Routers with metrics, pairs and matrices; domains; the run's course; the other model;
        findings and what to do.

    Raises:
        MoegeoError: bad input, by its subclasses.
    """
    from moegeo_cli.measurement.routing_analysis import measure_routing_of

    if max_tokens is not None and max_tokens < 1:
        raise UsageError("at least one probe token is needed", found=f"max_tokens {max_tokens}")
    settings = RoutingSettings(
        pairs=pairs,
        generate=generate,
        layers=parse_ranges(layers, "--layers"),
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        stream=stream,
        memory=parse_bytes(memory),
        seed=seed,
        verify_fingerprint=verify_fingerprint,
    )
    limits = load_thresholds(thresholds)
    check_framework(framework)
    models = choose_models(model, router, top_k, scoring, captures, config)
    folder = models.open(path)
    beside = None if other is None else models.open(other)
    if beside is not None and max_tokens is None and captures is None:
        max_tokens = max(default_tokens(run, models) for run in (folder, beside))
    loaded = open_probe(folder, probe, max_tokens, models)
    chosen = choose_checkpoints(folder, steps, latest or beside is not None)
    second = None
    if beside is not None:
        second = (beside.newest, open_probe(beside, probe, max_tokens, models))
    record = measure_routing_of(chosen, models, loaded, settings, second, progress)
    store = open_store(folder, cache, cache_dir, models)
    keep_lens(store, "routing", dataclasses.replace(record, other=None), models)
    if store.problem is not None:
        notes = (*record.notes, NOT_KEPT.format(store.problem))
        record = dataclasses.replace(record, notes=notes)
    about = describe_run(folder.newest, models.describe(folder.newest.path)[1])
    return judge_lens("routing", record, limits, about, framework)
