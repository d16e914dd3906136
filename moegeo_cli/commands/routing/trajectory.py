"""Follows routers over a run's checkpoints: response to the shared direction, and saturation.

Legend: N tokens with kept inputs, E experts, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.routing.figures import (
    Figure,
    Figures,
    change_figures,
    direction_figures,
    mean_figures,
    trend,
)
from moegeo_cli.commands.routing.record import RouterMetrics, RoutingStep, Trajectory
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.geometry.dynamics import Snapshot, saturation
from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.geometry.resample import Draws, mean_of, missing
from moegeo_cli.records import Coverage

FOLLOWED = ("shared_energy", "response", "response_relative", "constant_share", "collapse",
            "overlap_unrelated")  # fmt: skip
MIN_STEPS, MIN_POINTS = 3, 4


@dataclass(frozen=True)
class Stage:
    """One checkpoint: its coverage, and each router's figures by module path."""

    checkpoint: Checkpoint
    fingerprint: str
    coverage: Coverage
    layers: Mapping[str, int]
    figures: Mapping[str, Figures]


def stage_figures(tokens: RoutedTokens, draws: Draws, final: Snapshot | None) -> Figures:
    """The figures of a router that are followed over the run.

    Args:
        tokens: the router's tokens at this checkpoint.
        draws: the bootstrap draws.
        final: the router at the newest checkpoint; None if it was not measured there.
    """
    usage = tokens.usage
    found = {
        **direction_figures(tokens, draws),
        "overlap_unrelated": Figure(
            usage.across_sequences.estimate(draws, usage.tokens), usage.uniform_chance
        ),
    }
    saturated = (
        missing(HASHED) if tokens.logits_TE is None else missing("the router was not measured")
    )
    if final is not None and tokens.logits_TE is not None:
        saturated = saturation(snapshot(tokens), final, draws)
    return {name: found[name] for name in FOLLOWED} | {"saturation": Figure(saturated, 0.0)}


def snapshot(tokens: RoutedTokens) -> Snapshot:
    """A snapshot of a router at the tokens with kept inputs, the same at every checkpoint."""
    assert tokens.logits_TE is not None
    rows = tokens.kept_N
    return Snapshot(
        logits_ME=tokens.logits_TE[rows],
        selected_MK=tokens.usage.selected_TK[rows],
        group_M=tokens.group_T[rows],
        scoring=tokens.scoring,
        weight_ED=tokens.weight_ED,
        bias_E=None,
        x_ND=None,
        input_rows_N=None,
        top_k=tokens.top_k,
    )


def trace_run(stages: Sequence[Stage]) -> Trajectory:
    """The trajectory of a run.

    Args:
        stages: its checkpoints, oldest first.
    """
    first, last = stages[0], stages[-1]
    common = [path for path in last.figures if path in first.figures]
    changes = {path: change_figures(first.figures[path], last.figures[path]) for path in common}
    return Trajectory(
        steps=tuple(
            RoutingStep(
                step=stage.checkpoint.step,
                path=stage.checkpoint.relative,
                fingerprint=stage.fingerprint,
                coverage=stage.coverage,
                metrics=mean_figures(list(stage.figures.values())),
                layers=_records(stage.layers, stage.figures),
            )
            for stage in stages
        ),
        changes=_records(last.layers, changes),
        metrics={name: figure.metric(name) for name, figure in _relations(stages).items()},
    )


def _records(
    layers: Mapping[str, int], by_router: Mapping[str, Figures]
) -> tuple[RouterMetrics, ...]:
    return tuple(
        RouterMetrics(
            layers[path], path, {name: figure.metric(name) for name, figure in figures.items()}
        )
        for path, figures in by_router.items()
    )


def _relations(stages: Sequence[Stage]) -> Figures:
    """Rank correlations of the response with the step and with collapse."""
    means = [
        mean_of([f["response_relative"].estimate for f in stage.figures.values()])
        for stage in stages
    ]
    steps = [
        float(place if stage.checkpoint.step is None else stage.checkpoint.step)
        for place, stage in enumerate(stages)
    ]
    points = [
        (f["response_relative"].estimate, f["collapse"].estimate.value)
        for stage in stages
        for f in stage.figures.values()
    ]
    known = [(e, x) for e, x in points if x is not None and np.isfinite(x)]
    return {
        "response_with_step": Figure(
            trend(means, steps, MIN_STEPS, f"needs {MIN_STEPS} checkpoints"), 0.0
        ),
        "response_with_collapse": Figure(
            trend(
                [e for e, _ in known], [x for _, x in known], MIN_POINTS,
                f"needs {MIN_POINTS} different values of collapse",
            ),
            0.0,
        ),
    }  # fmt: skip
