"""The statistics of the evidence study, on numbers whose answer is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from benchmarks.evidence.auc import Resampling, clopper_pearson, holm, stratified_auc
from benchmarks.evidence.calibration import (
    FALSE_ALARMS,
    Rates,
    choose_quantile,
    collapse_alarms,
    fit_collapse,
)
from benchmarks.evidence.policies import stopping_value
from benchmarks.evidence.prediction import PRIMARY_BASE, leave_task_out, matrix, nested_change
from benchmarks.evidence.recoveries import arm_effects
from benchmarks.evidence.relations import Pairs, bend, rank_within, variance_parts, within_tasks
from benchmarks.evidence.table import add_labels


def runs_of(count: int = 240, seed: int = 0) -> pd.DataFrame:
    """Runs of three tasks and ten bases each, whose failure depends on `signal` alone."""
    generator = np.random.default_rng(seed)
    task = np.repeat(["a", "b", "c"], count // 3)
    base = [f"{t}-{i % 10}" for i, t in enumerate(task)]
    signal = generator.normal(size=count)
    return pd.DataFrame({
        "task": task, "base": base, "signal": signal,
        "weak": signal + 2 * generator.normal(size=count),
        "noise": generator.normal(size=count),
        "failed": signal + 0.5 * generator.normal(size=count) > 0.5,
    })  # fmt: skip


def test_the_area_is_the_share_of_pairs_within_tasks() -> None:
    table = runs_of(90)
    table.loc[::7, "weak"] = 0.0  # ties
    won = pairs = 0.0
    for _, own in table.groupby("task"):
        bad, good = own[own["failed"]]["weak"], own[~own["failed"]]["weak"]
        for x, y in itertools.product(bad, good):
            won += 1.0 if x > y else 0.5 if x == y else 0.0
            pairs += 1
    area = stratified_auc(
        table["weak"].to_numpy(), table["failed"].to_numpy(), table["task"],
        Resampling.of(table["task"], table["base"], 50),
    )  # fmt: skip
    assert area is not None
    assert area.value == pytest.approx(won / pairs)
    # a draw's area is that of the table with its bases repeated
    weights = Resampling.of(table["task"], table["base"], 50).weights_BN
    again = table.iloc[np.repeat(np.arange(90), weights[3].astype(int))]
    plain = stratified_auc(
        again["weak"].to_numpy(), again["failed"].to_numpy(), again["task"],
        Resampling(np.ones((1, len(again)))),
    )  # fmt: skip
    assert plain is not None
    assert area.draws[3] == pytest.approx(plain.value)


def test_draws_take_whole_bases_within_tasks() -> None:
    table = runs_of(90)
    weights = Resampling.of(table["task"], table["base"], 20).weights_BN
    for draw in weights:
        own = table.assign(w=draw).groupby("base")["w"]
        assert (own.nunique() == 1).all()
        assert (table.assign(w=draw).groupby("task")["w"].sum() == 30).all()


def test_intervals_of_areas_cover() -> None:
    """Under no signal 95% intervals of the area hold 0.5 about so often."""
    held = 0
    for seed in range(150):
        table = runs_of(240, seed)
        area = stratified_auc(
            table["noise"].to_numpy(), table["failed"].to_numpy(), table["task"],
            Resampling.of(table["task"], table["base"], 200),
        )  # fmt: skip
        assert area is not None
        held += area.low <= 0.5 <= area.high
    assert 0.86 <= held / 150 <= 0.99


def test_holm_and_the_exact_interval() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 0.3085), abs=1e-4)
    assert clopper_pearson(10, 10)[1] == 1.0
    assert clopper_pearson(3, 20) == pytest.approx((0.0321, 0.3789), abs=1e-4)


def test_a_nested_model_gains_by_what_tells_and_not_by_what_does_not() -> None:
    table = runs_of()
    gains = nested_change(table, "failed", ("weak",), ("weak", "signal"), draws=100)
    assert gains.change > 0.05
    assert gains.p < 0.05
    idle = nested_change(table, "failed", ("signal",), ("signal", "noise"), draws=100)
    assert abs(idle.change) < 0.02
    assert idle.p > 0.05


def test_a_task_left_out_teaches_nothing() -> None:
    table = runs_of()
    scores = leave_task_out(matrix(table, ["weak"]), table, "failed", np.ones(len(table)))
    turned = table.copy()
    own = turned["task"] == "a"
    turned.loc[own, "failed"] = ~turned.loc[own, "failed"]
    again = leave_task_out(matrix(turned, ["weak"]), turned, "failed", np.ones(len(table)))
    assert np.array_equal(scores[own], again[own])
    assert not np.array_equal(scores[~own], again[~own])
    assert PRIMARY_BASE == ("validation.relative",)


def test_limits_raise_few_false_alarms_on_tasks_left_out() -> None:
    generator = np.random.default_rng(1)
    count = 1200
    experts = generator.choice([4, 8, 16, 32], count)
    collapsed = generator.random(count) < 0.3
    excess = 0.1 * np.log(experts) + 0.05 * generator.normal(size=count) + 0.5 * collapsed
    table = pd.DataFrame({
        "task": generator.choice(["a", "b", "c"], count), "model_experts": experts,
        "model_top_k": 2, "collapse_excess": excess, "collapsed_now": collapsed,
    })  # fmt: skip
    quantile, rates = choose_quantile(table, "collapsed_now", fit_collapse, collapse_alarms)
    false, sound = rates.false_positive_rate
    assert false / sound <= FALSE_ALARMS
    assert rates.recall[0] / rates.recall[1] > 0.95
    limit = fit_collapse(table, quantile)
    assert limit(32, 2) > limit(4, 2)


def test_rates_count() -> None:
    rates = Rates.of([True, True, False, False], [True, False, True, False])
    assert (rates.precision, rates.recall, rates.false_positive_rate) == ((1, 2), (1, 2), (1, 2))
    data = rates.to_data()
    assert data["precision"] == 0.5
    assert data["recall_of"] == 2


def test_a_run_fails_only_below_its_own_base_and_below_the_best() -> None:
    def run(name: str, base: str, kind: str, loss: float, seed: int = 0) -> dict[str, object]:
        row: dict[str, object] = {
            "name": name, "base": base, "configuration": f"{base}-{kind}", "kind": kind,
            "task": "t", "seed": seed, "untouched": False, "unigram": 3.0, "broken_at": np.nan,
        }  # fmt: skip
        return row | {f"loss_{f:g}": max(loss, 2.9 - 1.0 * f) if f < 1 else loss
                      for f in (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)} | {
            "collapsed_1": False}  # fmt: skip

    table = pd.DataFrame([
        *(run(f"good-{i}", "good", "healthy", 1.0 + 0.02 * i, i) for i in range(3)),
        *(run(f"weak-{i}", "weak", "healthy", 1.9 + 0.02 * i, i) for i in range(3)),
        run("good-slow", "good", "slow", 2.0),  # under 85% of the best and of its base
        run("weak-slow", "weak", "slow", 1.93),  # as its base is
        run("good-slight", "good", "slow", 1.15),  # below its base, but not by 15%
        run("good-late", "good", "late", 2.6) | {"loss_0.5": 1.5},
    ]).set_index("name", drop=False)  # fmt: skip
    labelled = add_labels(table)
    assert labelled["failed"].to_dict() == {
        **{f"good-{i}": False for i in range(3)}, **{f"weak-{i}": False for i in range(3)},
        "good-slow": True, "weak-slow": False, "good-slight": False, "good-late": True,
    }  # fmt: skip
    assert labelled.loc["good-late", "outcome"] == "failed: diverged"
    assert labelled.loc["good-slow", "outcome"] == "failed: behind"


def restarts_of(count: int, arms: dict[str, Callable[[int, int], bool]]) -> pd.DataFrame:
    """Restarts of runs, one a configuration and two seeds, that recover by a rule (run, seed)."""
    return pd.DataFrame([
        {"kind": "k", "run": f"r{i}", "configuration": f"c{i}", "arm": arm, "seed": seed,
         "failed_before": i >= 4, "recovered": good(i, seed),
         "performance": float(good(i, seed)), "collapsed": False}
        for i in range(count) for arm, good in arms.items() for seed in (0, 1)
    ])  # fmt: skip


def test_an_arm_is_measured_against_the_control_on_the_same_runs() -> None:
    arms = {"control": lambda i, _: i < 4, "helps": lambda i, _: True, "idle": lambda i, _: i < 4}
    effects = arm_effects(restarts_of(12, arms)).set_index("arm")
    helps, idle = effects.loc["helps"], effects.loc["idle"]
    assert helps["difference"] == pytest.approx(8 / 12)
    assert helps["difference_low"] > 0
    assert (helps["recovered"], helps["recovered_control"], helps["n"]) == (24, 8, 24)
    # Of the runs that had failed before, by what they did then and not by what the control did.
    assert (helps["n_failing"], helps["recovered_failing"]) == (16, 16)
    assert helps["recovered_failing_control"] == 0
    # Where nothing changed there is no spread to draw from.
    assert idle["difference"] == 0
    assert np.isnan(idle["difference_high"])
    few = arm_effects(restarts_of(9, arms)).set_index("arm").loc["helps"]
    assert few["difference"] == pytest.approx(5 / 9)
    assert np.isnan(few["difference_low"])


def test_an_arm_that_has_one_seed_is_held_against_that_seed() -> None:
    arms = {"control": lambda i, seed: seed == 0, "half": lambda i, seed: seed == 0}
    table = restarts_of(12, arms)
    table = table[(table["arm"] == "control") | (table["seed"] == 0)]
    half = arm_effects(table).set_index("arm").loc["half"]
    assert half["difference"] == 0
    assert (half["recovered"], half["recovered_control"], half["n"]) == (12, 12, 12)


def test_stopping_at_an_alarm_saves_what_is_left() -> None:
    table = pd.DataFrame({
        "name": ["a", "a", "b", "b"], "fraction": [0.1, 0.5, 0.1, 0.5],
        "alarm": [False, True, False, False], "failed": [True, True, False, False],
    })  # fmt: skip
    row = stopping_value(table, "alarm", [0.5]).iloc[0]
    assert row["saved"] == pytest.approx(0.25)
    assert row["failed stopped"].startswith("1 of 1")
    assert row["sound stopped"].startswith("0 of 1")


def test_correlations_within_tasks_ignore_what_separates_tasks() -> None:
    generator = np.random.default_rng(2)
    table = pd.DataFrame({"task": np.repeat(["a", "b", "c"], 60)})
    table["x"] = generator.normal(size=180)
    table["y"] = -table["x"] + 10 * table["task"].map({"a": 0, "b": 1, "c": 2})
    table["x"] += 5 * table["task"].map({"a": 0, "b": 1, "c": 2})
    pairs = Pairs.of(table, "x", "y")
    assert within_tasks(pairs) == pytest.approx(-1.0)
    assert rank_within(pairs) == pytest.approx(-1.0)
    again = table.assign(y=table["x"] + generator.normal(size=180))
    centred = again[["x", "y"]] - again.groupby("task")[["x", "y"]].transform("mean")
    assert within_tasks(Pairs.of(again, "x", "y")) == pytest.approx(
        np.corrcoef(centred["x"], centred["y"])[0, 1]
    )


def test_a_bend_is_found_and_seeds_are_told_from_causes() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=400)
    table = pd.DataFrame({"task": "t", "x": x, "performance": -(x**2)})
    coefficient, gain = bend(Pairs.of(table, "x", "performance"))
    assert coefficient < 0
    assert gain > 0.9
    rows = []
    for base in range(40):
        b = generator.normal() * 2
        for cause in range(5):
            c = generator.normal()
            rows += [{"task": "t", "base": base, "configuration": f"{base}-{cause}",
                      "y": b + c + 0.5 * generator.normal()} for _ in range(2)]  # fmt: skip
    parts = variance_parts(pd.DataFrame(rows), "y").iloc[0]
    assert parts["seeds"] == pytest.approx(0.25, rel=0.3)
    assert parts["causes"] == pytest.approx(1.0, rel=0.4)
    assert parts["bases"] == pytest.approx(4.0, rel=0.5)
