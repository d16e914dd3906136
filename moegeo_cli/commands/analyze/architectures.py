"""Refuses runs whose checkpoints have different architectures."""

from __future__ import annotations

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import BaselineError


def refuse_mixed(
    checkpoint: Checkpoint, own: Architecture, newest: Checkpoint, of: Architecture
) -> None:
    """Refuse a checkpoint of another architecture than the run's newest one, stored or not."""
    if own == of:
        return
    told = say_choice_differences(own, of)
    raise BaselineError(
        f"{checkpoint.relative} is of another architecture than {newest.relative}",
        found="; ".join(told) or None,
        hint="analyze them separately: different K, E or groups cannot be followed over time",
    )


def say_choice_differences(a: Architecture, b: Architecture) -> list[str]:
    """How two architectures differ in E, K, groups and scoring, each as "a against b"."""
    facts = (
        ("experts (E)", a.experts, b.experts),
        ("experts by layer", a.experts_by_layer, b.experts_by_layer),
        ("chosen experts a token (K)", a.top_k, b.top_k),
        ("chosen experts by layer", a.top_k_by_layer, b.top_k_by_layer),
        ("groups of experts", a.selection.groups, b.selection.groups),
        ("renormalised weights", a.selection.renormalised, b.selection.renormalised),
        ("scoring", a.scoring, b.scoring),
    )
    return [f"{name}: {one} against {other}" for name, one, other in facts if one != other]
