"""Measures how a checkpoint's metrics change when its weights are rewritten with equal outputs.

Legend: N tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.analyze.history import add_history
from moegeo_cli.commands.invariance.record import (
    FindingsChange,
    MetricChange,
    PaperChange,
    Rewriting,
)
from moegeo_cli.commands.invariance.residual import NotApplicable
from moegeo_cli.commands.invariance.transformations import TRANSFORMATIONS
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.geometry.resample import group_sequences
from moegeo_cli.measuring.layers import checkpoint_record
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.measuring.run import Listener, Measured
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.records import CheckpointRecord, RunRecord
from moegeo_cli.replay.samples import as_batch
from moegeo_cli.routers.finding import find_routers
from moegeo_cli.settings import Settings
from moegeo_cli.verdict import judge

TOLERANCE = 1e-4  # relative change of the logits, and absolute change of MUST_HOLD metrics
VERIFIED_TOKENS = 512
MUST_HOLD = ("fsi", "collapse", "dispersion")
SHOWN = (
    "fsi", "collapse", "dispersion", "information", "entropy_load", "router_cosine", "logit_z",
    "near_ties", "heterogeneity", "heterogeneity_relative", "heterogeneity_trace",
    "heterogeneity_conditional", "fhs",
)  # fmt: skip


def measure_invariance(
    checkpoint: Checkpoint,
    architecture: Architecture,
    probe: Probe,
    settings: Settings,
    listener: Listener | None,
    models: Models,
) -> tuple[Rewriting, ...]:
    """Measure a checkpoint unchanged, and after each rewriting that its model allows.

    Args:
        checkpoint: the checkpoint.
        architecture: its architecture.
        probe: the probe; each rewriting is verified on its first tokens.
        settings: how to measure; the dtype is always float32.
        listener: receives an event for each checkpoint and batch; None for none.
        models: builds the model.

    Returns:
        One entry per rewriting.

    Raises:
        UnsupportedArchitectureError: an encoder-decoder model.
        MoegeoError: an error while loading or replaying.
    """
    if architecture.encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{architecture.model_type} has an encoder and a decoder: moegeo knows no rewriting "
            "that leaves its outputs unchanged",
            hint="`moegeo analyze` can measure this model",
        )
    settings = dataclasses.replace(settings, dtype="float32")
    groups_S = group_sequences(len(probe.sequences), settings.seed)
    measurer = Measurer(
        architecture, checkpoint.config, probe, groups_S, settings, models,
        verified=VERIFIED_TOKENS,
    )  # fmt: skip

    def measure(name: str, model: nn.Module) -> Measured:
        if listener:
            listener.checkpoint(name, probe.tokens, f"{probe.tokens:,} tokens")
        arrays = measurer.measure_model(model, checkpoint, listener.advance if listener else None)
        record = checkpoint_record(
            arrays, probe, settings, step=checkpoint.step, path=checkpoint.relative,
            fingerprint="", progress={},
        )  # fmt: skip
        return Measured("", record, lambda: arrays)

    if listener:
        listener.begin(checkpoint.title, 1 + len(TRANSFORMATIONS), "measurement")
    original = measurer.load(checkpoint)
    logits = list(_output_logits(original, probe))
    base = measure("unchanged", original)
    scoring = architecture.scoring or "softmax"

    def rewrite(name: str) -> Rewriting:
        model = copy.deepcopy(original)
        try:
            with torch.no_grad():
                TRANSFORMATIONS[name](model, find_routers(model), scoring,
                                      architecture.selection.groups, settings.seed)  # fmt: skip
        except NotApplicable as reason:
            return _not_applicable(name, str(reason), None)
        deviation = _deviation(logits, _output_logits(model, probe))
        if not deviation <= TOLERANCE:
            words = f"the output logits change by {deviation:.1e} of their scale"
            return _not_applicable(name, words, deviation)
        return _compare(name, deviation, base, measure(name, model), settings, probe)

    entries = []
    for name in TRANSFORMATIONS:
        entries.append(rewrite(name))
        gc.collect()  # modules have reference cycles: free one copy before the next is made
    memory_note = measurer.mode.say_memory(measurer.device)
    if listener and memory_note is not None:
        listener.note(memory_note)
    return tuple(entries)


def _deviation(before: Sequence[torch.Tensor], after: Iterator[torch.Tensor]) -> float:
    """The largest change of an output logit, divided by the largest logit.

    Args:
        before: logits of each sequence, shape (N, V).
        after: logits of the rewritten model, same shapes.
    """
    changes, sizes = [], []
    for old_NV, new_NV in zip(before, after, strict=True):
        for old, new in zip(old_NV, new_NV, strict=True):  # row by row, to save memory
            changes.append((new.double() - old.double()).abs().max())
            sizes.append(old.double().abs().max())
    return float(torch.stack(changes).max() / torch.stack(sizes).max())


def _output_logits(model: nn.Module, probe: Probe) -> Iterator[torch.Tensor]:
    """Logits of the first few hundred tokens: shape (N, V), one sequence or sample at a time."""
    left = VERIFIED_TOKENS
    weight = next(p for p in model.parameters() if p.is_floating_point())
    for sequence in probe.sequences:
        own = sequence if isinstance(sequence, Sample) else sequence.input_ids[:left]
        inputs = as_batch(own, weight.device, weight.dtype)
        with torch.inference_mode():
            logits = model(**inputs, use_cache=False).logits[0].cpu()
        yield logits.reshape(-1, logits.shape[-1])
        left -= len(own)
        if left <= 0:
            return


def describe(name: str) -> str:
    """What a rewriting does, in one sentence without a full stop."""
    lines = (TRANSFORMATIONS[name].__doc__ or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else name


def _not_applicable(name: str, reason: str, deviation: float | None) -> Rewriting:
    return Rewriting(
        name=name, description=describe(name), applicable=False, reason=reason,
        logits_deviation=deviation, held=None, metrics={}, findings=None, paper=None,
    )  # fmt: skip


def _compare(
    name: str,
    deviation: float,
    base: Measured,
    after: Measured,
    settings: Settings,
    probe: Probe,
) -> Rewriting:
    """Compare both measurements. The baseline of FHS is the unchanged checkpoint."""
    runs = [_run(m, base, settings, probe) for m in (base, after)]
    one, other = (r.checkpoints[0] for r in runs)
    metrics = {}
    for metric in SHOWN:
        a, b = one.metrics[metric].value, other.metrics[metric].value
        relative = (b - a) / abs(a) if a and b is not None else None
        metrics[metric] = MetricChange(a, b, relative)
    findings = FindingsChange(*(_findings(run) for run in runs))
    verdicts = [judge(r, policy="paper").verdict for r in runs]
    return Rewriting(
        name=name,
        description=describe(name),
        applicable=True,
        reason=None,
        logits_deviation=deviation,
        held=_metrics_hold(one, other) and findings.before == findings.after,
        metrics=metrics,
        findings=findings,
        paper=PaperChange(*(v.status if v else None for v in verdicts)),
    )


def _metrics_hold(one: CheckpointRecord, other: CheckpointRecord) -> bool:
    """Whether the MUST_HOLD metrics of every router stay the same."""
    pairs = zip(one.layers, other.layers, strict=True)
    return all(_near(a.metrics, b.metrics, name) for a, b in pairs for name in MUST_HOLD)


def _near(a: Mapping[str, Any], b: Mapping[str, Any], name: str) -> bool:
    one, other = a[name].value, b[name].value
    if one is None or other is None:
        return one is other
    return bool(abs(one - other) <= TOLERANCE)


def _run(measured: Measured, base: Measured, settings: Settings, probe: Probe) -> RunRecord:
    history = add_history([measured], [base], settings=settings, reason=None, kind="checkpoint",
                          step=base.record.step)  # fmt: skip
    return judge(dataclasses.replace(history, probe=probe.describe()))


def _findings(run: RunRecord) -> tuple[tuple[str, str], ...]:
    """Names and severities of findings above info."""
    assert run.verdict is not None
    found = [(f.name, f.severity) for f in run.verdict.findings if f.severity != "info"]
    return tuple(sorted(found))
