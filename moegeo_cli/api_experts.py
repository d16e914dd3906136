"""`experts` of the Python API: a checkpoint's experts as functions, and what they are given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.fingerprint import fingerprint
from moegeo_cli.global_state import keeps_global_state
from moegeo_cli.measurement.choosing import parse_ranges
from moegeo_cli.measurement.expert_settings import (
    DEFAULT_JACOBIAN_TOKENS,
    DEFAULT_RANK,
    ExpertSettings,
)
from moegeo_cli.measurement.lenses import describe_run, keep_lens
from moegeo_cli.measurement.models import choose_models
from moegeo_cli.measurement.probe import open_probe
from moegeo_cli.measurement.run import Listener
from moegeo_cli.measurement.settings import parse_bytes
from moegeo_cli.measurement.storing import NOT_KEPT, open_store
from moegeo_cli.records.experts import ExpertsRecord
from moegeo_cli.verdict import load_thresholds
from moegeo_cli.verdict.interventions import check_framework
from moegeo_cli.verdict.lenses import judge_lens


@keeps_global_state
def experts(
    path: Path | str,
    *,
    probe: Path | str | None = None,
    config: Path | str | None = None,
    tokens: str = "routed",
    weights: str = "topk",
    rank: float = DEFAULT_RANK,
    jacobian_tokens: int = DEFAULT_JACOBIAN_TOKENS,
    directions: int | None = None,
    verify: int = 0,
    layers: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    max_tokens: int | None = None,
    stream: bool = False,
    memory: str | int | None = None,
    seed: int = 0,
    cache: bool = True,
    cache_dir: Path | str | None = None,
    verify_fingerprint: str = "sampled",
    framework: str | None = None,
    thresholds: Mapping[str, Any] | Path | str | None = None,
    model: str | Callable[..., Any] | None = None,
    router: str | None = None,
    top_k: int | None = None,
    scoring: str | None = None,
    captures: Path | str | None = None,
    progress: Listener | None = None,
) -> ExpertsRecord:
    """How alike a checkpoint's experts are, by what they do and by what they see.

    Args:
        path: a checkpoint, or a run: then its newest one.
        probe: a probe file; None for the bundled one.
        config: a config.json, or a folder with one and the tokenizer, for checkpoints that have
            none of their own; None to look beside and above them.
        tokens: which count for the alignment of a pair: those "routed" to either, "coselected" by
            both, or "all".
        weights: weigh tokens by the dispatch ("topk") or by the whole routing distribution
            ("soft"): a reweighting of the same model.
        rank: dimensions of the subspaces; below 1 the share of variance to explain.
        jacobian_tokens: tokens at which Jacobians are taken.
        directions: random directions a token; 0 for whole Jacobians; None to choose by cost.
        verify: merge, then silence, that many of the top candidates in memory and measure the
            loss, beside three other ways to choose.
        layers: only these decoder layers, like "0,4-7".
        device: auto, cpu, cuda, …
        dtype: auto (as saved), float32, bfloat16 or float16.
        batch_size: sequences a batch; None for about 2,048 tokens.
        max_tokens: probe tokens; None for what `analyze` takes.
        stream: read layers from the files while they compute, even where the model would fit.
        memory: stay within so much while replaying, like "8GB"; streams where that needs it.
        seed: of sampling, directions, nulls and random choices.
        cache: keep what was measured, for `analyze` to judge the run by.
        cache_dir: where; None for `.moegeo` in the run.
        verify_fingerprint: as in `analyze`; it looks up what was kept with the same one.
        framework: whose keys interventions name; None to find it from the checkpoint.
        thresholds: overrides, as a table or the path of a TOML file.
        model: what builds a model of your own, as in `analyze`, as are the next three.
        router: likewise.
        top_k: likewise.
        scoring: likewise.
        captures: router inputs captured earlier: then only what experts are given is measured.
        progress: hears how far the work is.

    Returns:
        Layers with metrics, matrices and experts; merge and prune candidates, best first; findings
        and what to do.

    Raises:
        MoegeoError: bad input, by its subclasses.
    """
    from moegeo_cli.measurement.experts import measure_experts

    settings = ExpertSettings(
        tokens=tokens,
        weights=weights,
        rank=rank,
        jacobian_tokens=jacobian_tokens,
        directions=directions,
        layers=parse_ranges(layers, "--layers"),
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        stream=stream,
        memory=parse_bytes(memory),
        verify=verify,
        seed=seed,
    )
    limits = load_thresholds(thresholds)
    check_framework(framework)
    models = choose_models(model, router, top_k, scoring, captures, config)
    folder = models.open(path)
    document, architecture = models.describe(folder.newest.path)
    loaded = open_probe(folder, probe, max_tokens, models)
    models.check(folder.newest.path, architecture)
    found = fingerprint(folder.newest, verify_fingerprint)
    record = measure_experts(folder.newest, architecture, document, loaded, settings, models,
                             progress)  # fmt: skip
    record = dataclasses.replace(record, fingerprint=found)
    store = open_store(folder, cache, cache_dir, models)
    keep_lens(store, "experts", record, models)
    if store.problem is not None:
        notes = (*record.notes, NOT_KEPT.format(store.problem))
        record = dataclasses.replace(record, notes=notes)
    about = describe_run(folder.newest, architecture)
    return judge_lens("experts", record, limits, about, framework)
