"""`moegeo experts`: measures the experts of one checkpoint as functions, and their inputs.

One replay of the probe keeps the inputs of a limited number of tokens. Each layer is then measured
alone: of other layers, only the inputs are in memory.

Legend: S sequences, T probe positions, N kept tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.analyze.lenses import STATE_HINT
from moegeo_cli.commands.experts.candidates import (
    LISTED,
    merge_candidates,
    notes_on_unranked,
    prune_candidates,
)
from moegeo_cli.commands.experts.layers import MeasuredLayer, measure_layer
from moegeo_cli.commands.experts.memory import bytes_beside
from moegeo_cli.commands.experts.record import ExpertsRecord, Verification
from moegeo_cli.commands.experts.settings import KEPT_TOKENS, ExpertSettings
from moegeo_cli.commands.experts.tokens import gather_tokens
from moegeo_cli.commands.experts.verification import verify
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.geometry.estimates import ratio_of_sums
from moegeo_cli.geometry.resample import Draws, Estimate, group_sequences, make_draws, missing
from moegeo_cli.measuring.measurer import Measurer
from moegeo_cli.measuring.prepared import PreparedModel, collect_notes
from moegeo_cli.measuring.provenance import running_versions
from moegeo_cli.measuring.run import Listener
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe
from moegeo_cli.records import Coverage
from moegeo_cli.replay.kernels import compute_experts_by
from moegeo_cli.replay.losses import sequence_losses
from moegeo_cli.replay.plan import CATEGORICAL, Plan, Replay
from moegeo_cli.replay.sampling import sample_rows
from moegeo_cli.routers.finding import Router

NOT_IN_MEMORY = "--verify was left out: it needs the whole model in memory"
NOTHING_TO_CHANGE = "--verify was left out: moegeo cannot change the weights of these experts"
NO_LABELS = "--verify was left out: it needs labels in the probe"
NO_FINITE_LOSS = "--verify was left out: the loss is not finite"
NO_EXPERTS = "no module of experts was found beside the router"
EMPIRICAL = ("empirical", "position")


def measure_experts(
    checkpoint: Checkpoint,
    architecture: Architecture,
    probe: Probe,
    settings: ExpertSettings,
    models: Models,
    listener: Listener | None = None,
) -> ExpertsRecord:
    """Measure the experts of one checkpoint.

    Args:
        checkpoint: the checkpoint.
        architecture: its architecture.
        probe: the tokenised probe.
        settings: how to measure.
        models: builds the model.
        listener: receives an event for each checkpoint and batch; None for none.

    Returns:
        The record, without findings.

    Raises:
        UnsupportedArchitectureError: no router, an unknown scoring, or no layer that can be
            measured.
    """
    groups_S = group_sequences(len(probe.sequences), settings.seed)
    groups = int(groups_S.max(initial=0)) + 1
    measurer = Measurer(
        architecture, checkpoint.config, probe, groups_S, settings.replay, models,
        beside=bytes_beside(settings, architecture, groups, probe.tokens), every_token=True,
    )  # fmt: skip
    prepared = measurer.open(checkpoint)
    plan = measurer.plan(prepared)
    blocks = prepared.form.find_experts(prepared.asked, measurer.inputs)
    if listener:
        listener.begin(checkpoint.title, 1 + len(prepared.asked), "part")
        listener.checkpoint("replay", probe.tokens, f"{probe.tokens:,} tokens")
    plan = plan.of_every_token(
        fishers=(CATEGORICAL, EMPIRICAL) if prepared.form.no_loss is None else (CATEGORICAL,),
        sample_rows=_kept_rows(prepared.asked, probe.tokens, settings),
        input_modules=_input_modules(blocks),
    )
    outcome = measurer.replay(prepared, plan, listener.advance if listener else None)
    draws = make_draws(groups_S, settings.seed)
    mode = measurer.mode
    skipped = {r.path: "left out by --layers" for r in prepared.routers if r not in prepared.asked}
    layers: list[MeasuredLayer] = []
    streamed = mode.kind is not None
    count = max(LISTED, settings.verify)
    with _one_by_one(prepared.model):
        for trace in outcome.traces:
            path = trace.router.path
            block = blocks[path]
            if listener:
                listener.checkpoint(path, 0, "experts")
            if block is None:
                skipped[path] = NO_EXPERTS
                continue
            tokens = gather_tokens(
                block, trace, plan, outcome.sequence_T, settings.weights, measurer.device,
                hashed=trace.router.layer in architecture.hash_layers,
                has_loss=bool(outcome.loss_tokens_S.any()),
            )  # fmt: skip
            if isinstance(tokens, str):
                skipped[path] = tokens
                continue
            with measurer.source(checkpoint).holding(path):
                layer = measure_layer(tokens, draws, settings, count)
            # Streamed weights must not stay in memory.
            layers.append(dataclasses.replace(layer, experts=None) if streamed else layer)
    if not layers:
        path, reason = next(iter(skipped.items()))
        raise UnsupportedArchitectureError(
            "no router's experts could be measured", found=f"{path}: {reason}", hint=STATE_HINT
        )
    memory_note = mode.say_memory(measurer.device)
    if listener and memory_note is not None:
        listener.note(memory_note)
    verification, why_not = None, None
    if settings.verify:
        verification, why_not = _verify(measurer, prepared, outcome, plan, layers, draws, settings)
    whole = len(layers) == len(prepared.routers) and all(x.alignment_EE is not None for x in layers)
    assert plan.sample_rows is not None
    return ExpertsRecord(
        status="complete" if whole else "partial",
        versions=running_versions(),
        name=checkpoint.path.resolve().name,
        checkpoint=checkpoint.relative,
        step=checkpoint.step,
        model_type=architecture.model_type,
        probe=probe.describe(),
        settings={
            **dataclasses.asdict(settings),
            "max_tokens": probe.tokens,
            "kept_tokens": len(plan.sample_rows),
            "device": measurer.device.type,
            "dtype": str(measurer.dtype).removeprefix("torch."),
            "batch_size": outcome.batch_size,
            "threads": torch.get_num_threads() if measurer.device.type == "cpu" else None,
            "memory_plan": mode.describe_memory(),
            "reweighting": settings.weights == "soft",
        },
        coverage=Coverage(len(prepared.routers), len(layers), skipped),
        loss=_loss(prepared, outcome, draws).metric("loss"),
        layers=tuple(layer.record for layer in layers),
        merge_candidates=merge_candidates(layers, count),
        prune_candidates=prune_candidates(layers, count, narrow=len(probe.domains) < 2),
        verification=verification,
        notes=(
            *_breadth(probe),
            *collect_notes(prepared, mode, outcome, probe), *([why_not] if why_not else []),
            *notes_on_unranked(layers),
        ),
    )  # fmt: skip


def _breadth(probe: Probe) -> list[str]:
    """A note if the probe is too narrow to prune experts by."""
    names = list(probe.domains)
    if len(names) > 1:
        return []
    domains = f"one domain ({names[0]})" if names else "no named domains"
    return [
        f"the probe has {domains}: an expert that other text needs looks unused here. Before you "
        "prune, use a --probe with every kind of text that the model serves, and a domain in each "
        "row"
    ]


def _loss(prepared: PreparedModel, outcome: Replay, draws: Draws) -> Estimate:
    """The loss on the probe, in nats per token."""
    reason = prepared.form.no_loss
    if reason is not None or outcome.loss_S is None:
        return missing(reason or "no loss was taken", 0)
    return ratio_of_sums(outcome.loss_S, outcome.loss_tokens_S, draws)


def _verify(
    measurer: Measurer,
    prepared: PreparedModel,
    outcome: Replay,
    plan: Plan,
    layers: Sequence[MeasuredLayer],
    draws: Draws,
    settings: ExpertSettings,
) -> tuple[Verification | None, str | None]:
    """The trials of `--verify` and None; or None and the reason why there are none."""
    if measurer.mode.kind is not None:
        return None, NOT_IN_MEMORY
    if not any(layer.experts is not None and layer.experts.layout for layer in layers):
        return None, NOTHING_TO_CHANGE
    if not outcome.loss_tokens_S.any() or outcome.loss_S is None:
        return None, NO_LABELS
    if not np.isfinite(outcome.loss_S).all():
        return None, NO_FINITE_LOSS

    def losses() -> np.ndarray:
        labels = [s.labels for s in measurer.probe.sequences]
        return sequence_losses(prepared.model, measurer.inputs, labels, plan, outcome.batch_size)

    return verify(
        layers, losses, outcome.loss_tokens_S, draws, settings.verify, settings.seed
    ), None  # fmt: skip


def _kept_rows(routers: Sequence[Router], tokens: int, settings: ExpertSettings) -> np.ndarray:
    """The probe rows whose inputs are kept: the same for every layer."""
    width = sum(int(r.weight_ED.shape[1]) for r in routers)
    count = max(16, min(KEPT_TOKENS, settings.kept_bytes // (4 * width)))
    return sample_rows(tokens, count, settings.seed)


def _input_modules(blocks: Mapping[str, ExpertBlock | None]) -> dict[str, nn.Module]:
    """The modules whose inputs to keep, for experts that do not get their router's input."""
    return {
        path: block.input_module
        for path, block in blocks.items()
        if block is not None and block.input_module is not None
    }


@contextlib.contextmanager
def _one_by_one(model: Any) -> Iterator[None]:
    """Compute experts one by one during the block: grouped products have no second derivative."""
    inner = getattr(model, "inner", model)
    before = getattr(getattr(inner, "config", None), "_experts_implementation", None)
    if not hasattr(inner, "set_experts_implementation"):
        yield
        return
    compute_experts_by(inner, "eager")
    try:
        yield
    finally:
        if before is not None and not getattr(model, "_moegeo_eager", False):
            compute_experts_by(inner, before)
