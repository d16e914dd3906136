"""Prepare a model for a replay: find its routers, and collect notes for the report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.accounting import say_weights
from moegeo_cli.models.sources import ReplayMode
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.replay.forms import ModelForm, describe_choice, form_of
from moegeo_cli.replay.plan import Replay
from moegeo_cli.routers.finding import Router, find_other_routers, find_routers

UNPADDED = "layers carry a state, so each batch holds sequences of one length, without padding"
PAIRS = (
    "each sequence is a source (its first half, or what comes before its labels) and a target: "
    "{:,} tokens for the encoder's routers, {:,} for the decoder's"
)
OTHERS = "{} routers of image or sound tokens left out: the probe is text"


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model with its form and its routers; `asked` are the routers in the chosen layers."""

    model: nn.Module
    form: ModelForm
    routers: list[Router]
    asked: list[Router]
    encoder_decoder: bool


def prepare(
    model: nn.Module, architecture: Architecture, layers: Sequence[int] | None
) -> PreparedModel:
    """Find a model's routers, and those in the chosen layers.

    Args:
        model: the model.
        architecture: the facts about the routers in the config.
        layers: the chosen layers; None for all.

    Raises:
        UnsupportedArchitectureError: a layer without a router, or an unknown scoring.
    """
    routers = find_routers(model)
    asked = [r for r in routers if layers is None or r.layer in layers]
    lacking = sorted(set(layers or ()) - {r.layer for r in routers})
    if not asked or lacking:
        where = f"layer {', '.join(map(str, lacking[:8]))}" if lacking else "the model"
        raise UnsupportedArchitectureError(
            f"no router was found in {where}",
            found=f"routers in layers {sorted({r.layer for r in routers})}",
            hint="choose --layers among these"
            if routers
            else "name the routers by --router PATTERN",
        )
    if architecture.scoring is None:
        raise UnsupportedArchitectureError(
            f"the scoring function of {architecture.model_type} is not known",
            hint="give --scoring for your own model; otherwise report this model type, with its "
            "config.json",
        )
    return PreparedModel(model, form_of(model), routers, asked, architecture.encoder_decoder)


def collect_notes(
    prepared: PreparedModel, mode: ReplayMode, outcome: Replay, probe: Probe
) -> list[str]:
    """All notes about a replay for the report."""
    others = find_other_routers(prepared.model)
    sources = sum(s.source for s in probe.sequences if not isinstance(s, Sample))
    pairs = [PAIRS.format(sources, probe.tokens - sources)] if prepared.encoder_decoder else []
    return [
        *probe.notes,
        *mode.notes,
        *say_weights(prepared.model),
        *prepared.form.notes,
        *describe_choice(outcome.traces, held=outcome.loss_S is not None),
        *outcome.notes,
        *([UNPADDED] if prepared.form.stateful else []),
        *pairs,
        *([OTHERS.format(len(others))] if others else []),
    ]


def digest(routers: Sequence[Router]) -> str:
    """A hash of the routers' weights, to check that all ranks read the same files."""
    found = hashlib.sha256()
    for router in routers:
        weight = router.weight_ED.detach().cpu().contiguous()
        found.update(weight.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
