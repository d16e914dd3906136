"""Refuses runs whose checkpoints have different architectures."""

from __future__ import annotations

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import BaselineError


def refuse_mixed(
    checkpoint: Checkpoint, own: Architecture, newest: Checkpoint, expected: Architecture
) -> None:
    """Refuse a checkpoint whose architecture differs from that of the run's newest checkpoint.

    Args:
        checkpoint: the checkpoint.
        own: its architecture.
        newest: the run's newest checkpoint.
        expected: the architecture of `newest`.

    Raises:
        BaselineError: they differ.
    """
    if own == expected:
        return
    differences = choice_differences(own, expected)
    raise BaselineError(
        f"{checkpoint.title} is of another architecture than {newest.title}",
        found="; ".join(differences) or None,
        hint="analyze them separately: a run must keep K, E and groups to be followed over time",
    )


def choice_differences(a: Architecture, b: Architecture) -> list[str]:
    """How two architectures differ in E, K, groups and scoring, each as "a against b"."""
    facts = (
        ("experts (E)", a.experts, b.experts),
        ("experts by layer", a.experts_by_layer, b.experts_by_layer),
        ("chosen experts per token (K)", a.top_k, b.top_k),
        ("chosen experts by layer", a.top_k_by_layer, b.top_k_by_layer),
        ("groups of experts", a.selection.groups, b.selection.groups),
        ("renormalised weights", a.selection.renormalised, b.selection.renormalised),
        ("scoring", a.scoring, b.scoring),
    )
    return [f"{name}: {one} against {other}" for name, one, other in facts if one != other]
