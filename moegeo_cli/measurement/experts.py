"""`moegeo experts`: one checkpoint's experts as functions, and what they are given.

One replay of the probe leaves the inputs of a bounded number of tokens; each layer is then
measured by itself, with nothing of another layer in memory but its inputs.

Legend: S sequences, T probe positions, N kept tokens, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli import __version__
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.discover import CheckpointFolder
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.experts_records import ExpertsRecord
from moegeo_cli.geometry.estimates import ratio_of_sums
from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.measurement.analysis import PACKAGES
from moegeo_cli.measurement.expert_candidates import LISTED, merge_candidates, prune_candidates
from moegeo_cli.measurement.expert_layers import MeasuredLayer, measure_layer
from moegeo_cli.measurement.expert_settings import ExpertSettings
from moegeo_cli.measurement.expert_tokens import gather_tokens
from moegeo_cli.measurement.expert_verification import verify
from moegeo_cli.measurement.measurer import Measurer, sample_rows
from moegeo_cli.measurement.ready import OTHERS, UNPADDED
from moegeo_cli.measurement.run import Listener
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.records import Coverage
from moegeo_cli.replay.batches import carries_state
from moegeo_cli.replay.expert_blocks import ExpertBlock, find_experts
from moegeo_cli.replay.losses import sequence_losses
from moegeo_cli.replay.plan import CATEGORICAL, Plan, Replay
from moegeo_cli.replay.routers import Router, find_other_routers, find_routers
from moegeo_cli.replay.session import replay

# Inputs are wide: never more tokens, nor more bytes of them over all layers.
KEPT_TOKENS, KEPT_BYTES = 8192, 2**30
NOT_IN_MEMORY = "--verify needs the whole model in memory, and was left out"
NO_EXPERTS = "no module of experts was found beside the router"


def measure_experts(
    checkpoint: CheckpointFolder,
    architecture: Architecture,
    config: dict[str, Any],
    probe: Probe,
    settings: ExpertSettings,
    listener: Listener | None = None,
) -> ExpertsRecord:
    """Measure the experts of one checkpoint.

    Args:
        checkpoint: what is measured.
        architecture: what its config says of the routers.
        config: the parsed config.json.
        probe: the probe, tokenised.
        settings: how to measure.
        listener: hears of progress.

    Raises:
        UnsupportedArchitectureError: no router, a scoring that is not known, or an encoder with a
            decoder.
    """
    if architecture.scoring is None:
        raise UnsupportedArchitectureError(
            f"the scoring function of {architecture.model_type} is not known",
            hint="report this model type, with its config.json",
        )
    if architecture.encoder_decoder:
        raise UnsupportedArchitectureError(
            f"{architecture.model_type} has an encoder and a decoder: its experts are not read yet",
            hint="`moegeo analyze` measures its routers",
        )
    groups_S = group_sequences(len(probe.sequences), settings.seed)
    measurer = Measurer(architecture, config, probe, groups_S, settings.replay)
    source, device = measurer.source(checkpoint.path), measurer.device
    model = source.load(checkpoint.path)
    manner = source.manner
    routers = find_routers(model)
    asked = [r for r in routers if settings.layers is None or r.layer in settings.layers]
    if not asked:
        raise UnsupportedArchitectureError(
            "no router to measure",
            found=f"routers in layers {sorted({r.layer for r in routers})}",
            hint="choose --layers among these",
        )
    blocks = {r.path: find_experts(model, r) for r in asked}
    if listener:
        listener.begin(checkpoint.relative, 1 + len(asked), "part")
        listener.checkpoint("replay", probe.tokens, f"{probe.tokens:,} tokens")
    rows_N = _kept_rows(asked, probe.tokens, settings.seed)
    outcome = replay(
        model, asked, _token_ids(probe), [s.labels for s in probe.sequences],
        Plan(
            fishers=(CATEGORICAL, ("empirical", "position")),
            groups_S=groups_S,
            unselected=architecture.unselected_gradient,
            scoring=architecture.scoring,
            batch_size=settings.batch_size,
            batch_tokens=manner.batch_tokens,
            mixed_lengths=not carries_state(model),
            sample_rows=rows_N,
            input_modules=_input_modules(blocks),
            seed=settings.seed,
        ),
        progress=listener.advance if listener else None,
        kind=manner.kind,
    )  # fmt: skip
    draws = make_draws(groups_S, settings.seed)
    skipped = {r.path: "left out by --layers" for r in routers if r not in asked}
    layers: list[MeasuredLayer] = []
    streamed = manner.kind is not None
    with _one_by_one(model):
        for trace in outcome.traces:
            path = trace.router.path
            block = blocks[path]
            if listener:
                listener.checkpoint(path, 0, "experts")
            if block is None:
                skipped[path] = NO_EXPERTS
                continue
            tokens = gather_tokens(
                block, trace, rows_N, groups_S[outcome.sequence_T], architecture.scoring,
                settings.weights, device, hashed=trace.router.layer in architecture.hash_layers,
            )  # fmt: skip
            if isinstance(tokens, str):
                skipped[path] = tokens
                continue
            with source.holding(path):
                layer = measure_layer(tokens, draws, settings)
            # Weights that only pass through are not held on to.
            layers.append(dataclasses.replace(layer, experts=None) if streamed else layer)
    verification = None
    if settings.verify and layers and not streamed:
        verification = verify(
            layers, _losses(model, probe, outcome), outcome.loss_tokens_S, draws,
            settings.verify, settings.seed,
        )  # fmt: skip
    whole = len(layers) == len(routers) and all(x.functions is not None for x in layers)
    count = max(LISTED, settings.verify)
    assert outcome.loss_S is not None
    return ExpertsRecord(
        status="complete" if whole else "partial",
        versions={"moegeo": __version__, **{name: metadata.version(name) for name in PACKAGES}},
        name=checkpoint.path.resolve().name,
        checkpoint=checkpoint.relative,
        step=checkpoint.step,
        model_type=architecture.model_type,
        probe=probe.describe(),
        settings={
            **dataclasses.asdict(settings),
            "max_tokens": probe.tokens,
            "kept_tokens": len(rows_N),
            "device": device.type,
            "dtype": str(measurer.dtype).removeprefix("torch."),
            "batch_size": outcome.batch_size,
            "threads": torch.get_num_threads() if device.type == "cpu" else None,
            "reweighting": settings.weights == "soft",
        },
        coverage=Coverage(len(routers), len(layers), skipped),
        loss=ratio_of_sums(outcome.loss_S, outcome.loss_tokens_S, draws).metric("loss"),
        layers=tuple(layer.record for layer in layers),
        merge_candidates=merge_candidates(layers, count),
        prune_candidates=prune_candidates(layers, count),
        verification=verification,
        notes=(
            *manner.notes,
            *outcome.notes,
            *([OTHERS.format(len(others))] if (others := find_other_routers(model)) else []),
            *([UNPADDED] if carries_state(model) else []),
            *([NOT_IN_MEMORY] if settings.verify and streamed else []),
        ),
    )


def _kept_rows(routers: list[Router], tokens: int, seed: int) -> np.ndarray:
    """The probe rows whose inputs are kept: the same for every layer."""
    width = sum(int(r.weight_ED.shape[1]) for r in routers)
    return sample_rows(tokens, max(16, min(KEPT_TOKENS, KEPT_BYTES // (4 * width))), seed)


def _input_modules(blocks: dict[str, ExpertBlock | None]) -> dict[str, nn.Module]:
    """Whose inputs to keep, for the routers whose experts do not take the router's own."""
    return {
        path: block.input_module
        for path, block in blocks.items()
        if block is not None and block.input_module is not None
    }


@contextlib.contextmanager
def _one_by_one(model: Any) -> Iterator[None]:
    """Experts computed one by one: grouped products have no second derivative, and need widths."""
    before = getattr(model.config, "_experts_implementation", None)
    model.set_experts_implementation("eager")
    try:
        yield
    finally:
        if before is not None and not getattr(model, "_moegeo_eager", False):
            model.set_experts_implementation(before)


def _token_ids(probe: Probe) -> list[np.ndarray]:
    """Token ids by sequence: a checkpoint's own model takes nothing else."""
    return [s.input_ids for s in probe.sequences if not isinstance(s, Sample)]


def _losses(model: nn.Module, probe: Probe, outcome: Replay) -> Callable[[], np.ndarray]:
    """The probe's loss by sequence, of the model as it stands, in the batches of the replay."""
    ids = _token_ids(probe)
    labels = [s.labels for s in probe.sequences]
    mixed = not carries_state(model)
    return lambda: sequence_losses(model, ids, labels, outcome.batch_size, mixed_lengths=mixed)
