"""`moegeo routing`: measures what routing depends on, over a run, and against a second model.

One forward pass per checkpoint keeps choices and logits of all tokens, and the router inputs of a
limited number of tokens. Routers are then measured one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.analyze.lenses import STATE_HINT
from moegeo_cli.commands.routing.figures import Figure, mean_figures, trend
from moegeo_cli.commands.routing.layers import Domains, MeasuredRouter
from moegeo_cli.commands.routing.models import Side, compare_pair, decide_lineage, pair_sides
from moegeo_cli.commands.routing.record import DomainRecord, OtherModel, RoutingRecord
from moegeo_cli.commands.routing.replay import RoutingReplay
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.commands.routing.trajectory import trace_run
from moegeo_cli.errors import ComparisonError, UnsupportedArchitectureError
from moegeo_cli.geometry.resample import Draws, mean_of
from moegeo_cli.measuring.provenance import running_versions
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe

MIN_LAYERS = 3


def measure_routing_record(
    checkpoints: Sequence[Checkpoint],
    models: Models,
    probe: Probe,
    settings: RoutingSettings,
    other: tuple[Checkpoint, Probe] | None = None,
    listener: Listener | None = None,
) -> RoutingRecord:
    """Measure what the routing of a checkpoint depends on.

    Args:
        checkpoints: checkpoints of one run, oldest first. The last one is measured in full; of the
            others only the metrics of the trajectory are measured.
        models: builds the models.
        probe: the tokenised probe.
        settings: how to measure.
        other: a second model's checkpoint, and the probe tokenised for it.
        listener: receives an event for each checkpoint and batch; None for none.

    Returns:
        The record, without findings.

    Raises:
        ComparisonError: the second model's tokenizer reads the probe as other tokens.
        UnsupportedArchitectureError: no router could be measured.
        MoegeoError: an error while opening, loading or replaying.
    """
    if other is not None and other[1].sha256 != probe.sha256:
        raise ComparisonError(
            "the two models read the probe as different tokens",
            found=f"{probe.tokens:,} tokens against {other[1].tokens:,}",
            hint="compare models with the same tokenizer, or give a --probe of input_ids",
        )
    newest = checkpoints[-1]
    analysis = RoutingReplay(models, newest, probe, settings, listener)
    if listener:
        count = len(checkpoints) + 1 + (other is not None) + bool(settings.generate)
        listener.begin(newest.title, count, "step")
    found = analysis.replay(newest)
    if not found.routers:
        path, reason = next(iter(found.coverage.not_measured.items()))
        raise UnsupportedArchitectureError(
            "no router could be measured", found=f"{path}: {reason}", hint=STATE_HINT
        )
    domains = Domains.of([s.domain for s in probe.sequences])
    measured, generated, notes = analysis.measure(found, domains)
    final = analysis.stage(newest, found, found.routers)
    sides = [] if other is None else analysis.sides(newest, found)
    coverage, routers, batch_size = found.coverage, found.routers, found.batch_size
    notes, kept = (*found.notes, *notes), found.kept
    trajectory = None
    if len(checkpoints) > 1:
        earlier = []
        for checkpoint in checkpoints[:-1]:
            now = analysis.replay(checkpoint)
            earlier.append(analysis.stage(checkpoint, now, routers))
        trajectory = trace_run([*earlier, final])
    device, dtype = analysis.measurer.device, analysis.measurer.dtype
    plan = analysis.measurer.mode.describe_memory()
    model_type, draws = analysis.architecture.model_type, analysis.draws
    del analysis, found, routers  # one model is in memory at a time
    second = None
    if other is not None:
        second = _compare_with(sides, models, *other, settings, draws, listener)
    figures = [router.figures for router in measured]
    depth = trend(
        [f["overlap_unrelated"].estimate for f in figures], range(len(figures)), MIN_LAYERS,
        f"needs {MIN_LAYERS} layers",
    )  # fmt: skip
    complete = coverage.routers_found == coverage.routers_measured
    return RoutingRecord(
        status="complete" if complete else "partial",
        versions=running_versions(),
        name=newest.path.resolve().name,
        checkpoint=newest.relative,
        step=newest.step,
        model_type=model_type,
        probe=probe.describe(),
        settings={
            **dataclasses.asdict(settings),
            "max_tokens": probe.tokens,
            "kept_tokens": kept,
            **generated,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "batch_size": batch_size,
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "memory_plan": plan,
        },
        coverage=coverage,
        metrics={
            **mean_figures(figures),
            "depth_trend": Figure(depth, 0.0).metric("depth_trend"),
        },
        layers=tuple(router.record for router in measured),
        domains=_domains(domains, probe, measured),
        trajectory=trajectory,
        other=second,
        notes=notes,
        fingerprint=final.fingerprint,
    )


def _domains(
    domains: Domains, probe: Probe, measured: Sequence[MeasuredRouter]
) -> tuple[DomainRecord, ...]:
    """Each domain's overlap with itself and with others, as means over routers."""
    found = []
    for number, name in enumerate(domains.names):
        own = [router.domains[number] for router in measured if router.domains]
        if not own:
            return ()
        within, across = (mean_of([pair[side] for pair in own]) for side in (0, 1))
        found.append(
            DomainRecord(
                domain=name,
                sequences=int((domains.labels_S == number).sum()),
                tokens=probe.domain_tokens[name],
                within=Figure(within, 0.0).metric("domain_overlap_within"),
                across=Figure(across, 0.0).metric("domain_overlap_across"),
            )
        )
    return tuple(found)


def _compare_with(
    sides: Sequence[Side],
    models: Models,
    checkpoint: Checkpoint,
    probe: Probe,
    settings: RoutingSettings,
    draws: Draws,
    listener: Listener | None,
) -> OtherModel:
    """Measure a second model's routers and compare them with the routers of the first."""
    analysis = RoutingReplay(models, checkpoint, probe, settings, listener)
    found = analysis.replay(checkpoint)
    pairs = pair_sides(sides, analysis.sides(checkpoint, found))
    lineage, words, matches = decide_lineage(pairs)
    return OtherModel(
        name=checkpoint.path.resolve().name,
        checkpoint=checkpoint.relative,
        step=checkpoint.step,
        model_type=analysis.architecture.model_type,
        fingerprint=checkpoint.fingerprint(settings.verify_fingerprint),
        coverage=found.coverage,
        lineage=lineage,
        lineage_reason=words,
        layers=tuple(
            compare_pair(a, b, match, lineage, draws, settings.seed)
            for (a, b), match in zip(pairs, matches, strict=True)
        ),
        notes=found.notes,
    )
