"""Scores against a baseline and moves between checkpoints, by their definitions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.commands.analyze.history import add_history
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.measuring.run import Measured
from moegeo_cli.records import RunRecord
from moegeo_cli.settings import Settings
from tests.traces import measured_of

SETTINGS = Settings()
NAMED = SETTINGS.named


def history(*measured: Measured, draws: tuple[Measured, ...] = (), **about: Any) -> RunRecord:
    known = {"reason": None, "kind": "checkpoint", "step": 0, "settings": SETTINGS} | about
    return add_history(measured, draws, **known)


RUN = (measured_of(1, step=0), measured_of(2, step=100), measured_of(3, step=200))


@pytest.fixture(scope="module")
def run() -> RunRecord:
    return history(*RUN, draws=RUN[:1])


def test_a_score_is_the_heterogeneity_over_that_of_the_baseline(run: RunRecord) -> None:
    base = RUN[0].record
    for measured, record in zip(RUN, run.checkpoints, strict=True):
        for place, layer in enumerate(record.layers):
            now = measured.record.layers[place].metrics["heterogeneity"].value
            then = base.layers[place].metrics["heterogeneity"].value
            score = layer.metrics["fhs"]
            assert score.value == pytest.approx(now / then)
            assert layer.fisher[NAMED[0]][NAMED[1]]["fhs"] == score
    assert run.checkpoints[0].layers[0].metrics["fhs"].value == pytest.approx(1.0)
    assert run.baseline["kind"] == "checkpoint"
    assert (run.baseline["step"], run.baseline["path"]) == (0, "checkpoint-0")


def test_several_initialisations_are_one_base_by_their_geometric_mean() -> None:
    draws = (measured_of(11), measured_of(12), measured_of(13))
    found = Baseline(draws, make_draws(RUN[0].arrays.groups_S)).scores(RUN[1].arrays, NAMED)
    for place, scores in enumerate(found):
        values = [d.record.layers[place].metrics["heterogeneity_relative"].value for d in draws]
        now = RUN[1].record.layers[place].metrics["heterogeneity_relative"].value
        score = scores["fhs_relative"]
        assert score.value == pytest.approx(now / np.exp(np.mean(np.log(values))))


def test_without_a_baseline_every_score_has_its_reason() -> None:
    found = history(*RUN, reason="the run has no step-0 checkpoint")
    for record in found.checkpoints:
        assert record.metrics["fhs"].value is None
        for layer in record.layers:
            assert layer.metrics["fhs"].reason == "the run has no step-0 checkpoint"
    assert found.baseline == {
        "kind": None, "step": None, "path": None, "baseline_draws": 0,
        "reason": "the run has no step-0 checkpoint",
    }  # fmt: skip
    assert history(*RUN).baseline["reason"] == "no baseline"


def test_a_baseline_without_a_router_has_no_score_for_it() -> None:
    base = measured_of(1, step=0, layers=(0,))
    scores = Baseline([base], make_draws(base.arrays.groups_S)).scores(RUN[1].arrays, NAMED)
    assert scores[1]["fhs"].value is None
    assert "router not measured" in str(scores[1]["fhs"].reason)


def test_a_kind_of_fisher_that_was_not_measured_is_named() -> None:
    arrays = RUN[1].arrays
    bare = dataclasses.replace(
        arrays, routers=tuple(dataclasses.replace(r, fishers={}) for r in arrays.routers)
    )
    [score, _] = Baseline(RUN[:1], make_draws(arrays.groups_S)).scores(bare, NAMED)
    assert score["fhs"].reason == "this kind of Fisher was not measured here"


def test_a_move_is_between_one_checkpoint_and_the_next(run: RunRecord) -> None:
    assert [(m["from_step"], m["to_step"]) for m in run.dynamics] == [(0, 100), (100, 200)]
    for move, before, after in zip(run.dynamics, RUN, RUN[1:], strict=False):
        for place, layer in enumerate(move["layers"]):
            one, other = (m.arrays.routers[place] for m in (before, after))
            roots = []
            for logits in (one.sample_logits_ME, other.sample_logits_ME):
                odds = np.exp(logits.astype(float))
                roots.append(np.sqrt(odds / odds.sum(1, keepdims=True)))
            apart = 2 * np.arccos(np.clip((roots[0] * roots[1]).sum(1), -1, 1))
            assert layer["metrics"]["speed"].value == pytest.approx(apart.mean(), rel=1e-5)
            assert layer["layer"] == place
            assert layer["weights_equal"] is False
            assert layer["bias_equal"] is None
    assert [m["geodesic_steps"] for m in run.dynamics] == [[0, 100], [0, 100, 200]]


def test_the_last_checkpoint_is_settled_and_the_first_has_no_way_behind_it(run: RunRecord) -> None:
    again = history(RUN[0], measured_of(2, step=100), measured_of(2, step=150), draws=RUN[:1])
    last = again.dynamics[-1]["layers"][0]
    assert last["metrics"]["speed"].value == pytest.approx(0.0, abs=1e-6)
    assert last["metrics"]["saturation"].value == pytest.approx(1.0)
    assert (last["weights_equal"], last["logits_equal"]) == (True, True)
    first = run.dynamics[0]["layers"][0]["metrics"]["geodesic_excess"]
    assert first.reason == "needs three checkpoints"
    assert history(RUN[0]).dynamics == ()


def test_routers_that_a_checkpoint_lacks_do_not_move() -> None:
    lost = measured_of(2, step=100, layers=(0,))
    found = history(RUN[0], lost, RUN[2])
    assert [[x["layer"] for x in m["layers"]] for m in found.dynamics] == [[0], [0]]
    assert found.dynamics[1]["layers"][0]["metrics"]["geodesic_excess"].reason != (
        "router not measured at every checkpoint"
    )
    gap = history(RUN[0], lost, RUN[2], measured_of(4, step=300))
    late = gap.dynamics[-1]["layers"][1]["metrics"]["geodesic_excess"]
    assert late.reason == "router not measured at every checkpoint"
    missed = history(RUN[0], RUN[1], measured_of(4, step=300, layers=(0,)))
    unsettled = missed.dynamics[0]["layers"][1]["metrics"]["saturation"]
    assert unsettled.reason == "router not measured"
