"""A run's checkpoints side by side: settled choices, changes, and what goes with what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from moegeo_cli.commands.routing.figures import Figure
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.commands.routing.trajectory import (
    FOLLOWED,
    Stage,
    snapshot,
    stage_figures,
    trace_run,
)
from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.geometry.resample import Estimate, missing
from moegeo_cli.records import Coverage
from tests.commands.routing.recorded import (
    DRAWS,
    chosen_of,
    gather,
    mean_overlap,
    replaced,
    tokens_of,
)
from tests.commands.routing.recorded import SEQUENCE_T as Q
from tests.traces import EXPERTS, trace_of

PATHS = ("model.layers.0.mlp.gate", "model.layers.1.mlp.gate")


def test_what_is_followed_of_a_router() -> None:
    tokens, others = (found for seed in (1, 2)
                      if isinstance(found := gather(trace_of(seed)), RoutedTokens))  # fmt: skip
    found = stage_figures(tokens, DRAWS, snapshot(tokens))
    assert set(found) == {*FOLLOWED, "saturation"}
    apart = mean_overlap(tokens, lambda t, s: Q[t] != Q[s])
    assert found["overlap_unrelated"].estimate.value == pytest.approx(apart)
    assert found["saturation"].estimate.value == pytest.approx(1.0), "the newest is settled"
    settled = stage_figures(others, DRAWS, snapshot(tokens))["saturation"].estimate
    ours, theirs = chosen_of(others), chosen_of(tokens)
    overlap = np.mean([len(a & b) / 2 for a, b in zip(ours, theirs, strict=True)])
    loads = [[sum(e in c for c in run) / (2 * len(run)) for e in range(EXPERTS)]
             for run in (ours, theirs)]  # fmt: skip
    chance = 2 * np.dot(*loads)
    assert settled.value == pytest.approx((overlap - chance) / (1 - chance))


def test_what_cannot_settle_says_why() -> None:
    hashing = replaced(tokens_of(1), logits_TE=None)
    assert stage_figures(hashing, DRAWS, None)["saturation"].estimate.reason == HASHED
    holed = tokens_of(1)
    empty = stage_figures(holed, DRAWS, snapshot(holed))["saturation"].estimate
    assert empty.reason == "some slots are empty"
    alone = stage_figures(tokens_of(1), DRAWS, None)["saturation"].estimate
    assert alone.reason == "the router was not measured"


def stage(step: int | None, responses: dict[str, float | None], collapse: float = 0.1) -> Stage:
    def figure(value: float | None) -> Figure:
        return Figure(missing("lost") if value is None else Estimate(value))

    figures = {
        path: {"response_relative": figure(value), "collapse": figure(collapse * (place + 1))}
        for place, (path, value) in enumerate(responses.items())
    }
    checkpoint: Any = SimpleNamespace(step=step, relative=f"checkpoint-{step}")
    layers = {path: place for place, path in enumerate(responses)}
    return Stage(checkpoint, "f" * 64, Coverage(2, len(responses)), layers, figures)


STAGES = [
    stage(0, dict(zip(PATHS, (1.0, 2.0), strict=True)), 0.1),
    stage(10, dict(zip(PATHS, (1.5, 2.5), strict=True)), 0.4),
    stage(20, dict(zip(PATHS, (1.2, 2.0), strict=True)), 0.2),
]


def test_steps_have_means_over_routers_and_changes_are_last_less_first() -> None:
    found = trace_run(STAGES)
    assert [(s.step, s.path) for s in found.steps] == [
        (0, "checkpoint-0"), (10, "checkpoint-10"), (20, "checkpoint-20"),
    ]  # fmt: skip
    means = [s.metrics["response_relative"].value for s in found.steps]
    assert means == pytest.approx([1.5, 2.0, 1.6])
    changes = {c.router: c.metrics["response_relative"].value for c in found.changes}
    assert changes == {PATHS[0]: pytest.approx(0.2), PATHS[1]: pytest.approx(0.0)}


def test_the_response_goes_with_steps_and_with_collapse() -> None:
    found = trace_run(STAGES).metrics
    assert found["response_with_step"].value == pytest.approx(
        spearmanr([0, 10, 20], [1.5, 2.0, 1.6]).statistic
    )
    responses = [1.0, 2.0, 1.5, 2.5, 1.2, 2.0]
    collapses = [0.1, 0.2, 0.4, 0.8, 0.2, 0.4]
    assert found["response_with_collapse"].value == pytest.approx(
        spearmanr(collapses, responses).statistic
    )


def test_too_few_checkpoints_or_routers_have_no_trend() -> None:
    found = trace_run(STAGES[:1]).metrics
    assert found["response_with_step"].reason == "needs 3 checkpoints"
    assert found["response_with_collapse"].reason == "needs 4 different values of collapse"
    assert trace_run(STAGES[:1]).changes != ()


def test_routers_that_one_end_lacks_do_not_change() -> None:
    late = stage(30, {PATHS[1]: 2.5, "model.layers.2.mlp.gate": 1.0})
    found = trace_run([*STAGES, late])
    assert [c.router for c in found.changes] == [PATHS[1]]
    lost = trace_run([stage(0, {PATHS[0]: None}), *STAGES[1:]])
    assert lost.changes[0].metrics["response_relative"].reason == "lost"


def test_without_steps_checkpoints_stand_in_their_order() -> None:
    stages = [stage(None, {PATHS[0]: value}) for value in (3.0, 2.0, 1.0)]
    assert trace_run(stages).metrics["response_with_step"].value == pytest.approx(-1.0)
    assert np.isfinite(trace_run(stages).metrics["response_with_step"].value)
