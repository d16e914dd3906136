"""Which checkpoints of two runs belong together, and how two of them differ."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moegeo_cli.commands.analyze.baseline import Baseline
from moegeo_cli.commands.compare.pairing import (
    choose_axis,
    compare_checkpoints,
    compare_losses,
    match_progress,
)
from moegeo_cli.errors import ComparisonError, UsageError
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.records import CheckpointRecord
from moegeo_cli.records.comparison import MatchedPair
from moegeo_cli.settings import Settings
from tests.traces import measured_of
from tests.verdict.conftest import checkpoint

SETTINGS = Settings()


def records(*tokens: float) -> list[CheckpointRecord]:
    return [checkpoint(step) for step in map(int, tokens)]


def gap(a: float, b: float) -> float:
    return 0.0 if a == b else abs(a - b) / max(a, b)


# Many within 2% of one another, some not; 0 is a checkpoint before training.
PROGRESS = st.lists(
    st.one_of(st.just(0), st.integers(95, 110), st.integers(1000, 1100)), unique=True, max_size=6
).map(sorted)


@settings(max_examples=40, deadline=None)
@given(PROGRESS, PROGRESS)
def test_the_nearest_are_matched_first_and_each_once(ours: list[int], theirs: list[int]) -> None:
    pairs, alone = match_progress(records(*ours), records(*theirs), "step")
    matched = [(a.step or 0, b.step or 0) for a, b in pairs]

    rest_a, rest_b, expected = list(ours), list(theirs), []
    while near := [
        (gap(a, b), a, b) for a in rest_a for b in rest_b if abs(a - b) <= 0.02 * max(a, b)
    ]:
        _, a, b = min(near)
        expected.append((a, b))
        rest_a.remove(a)
        rest_b.remove(b)
    assert matched == sorted(expected)
    assert [(u.run, u.step, u.progress) for u in alone] == [
        *(("a", a, float(a)) for a in rest_a), *(("b", b, float(b)) for b in rest_b),
    ]  # fmt: skip
    assert {u.reason for u in alone} <= {"the other run has no checkpoint within 2% of it"}


@settings(max_examples=40, deadline=None)
@given(PROGRESS, PROGRESS)
def test_the_order_of_the_two_runs_does_not_matter(ours: list[int], theirs: list[int]) -> None:
    gaps = sorted(gap(a, b) for a, b in itertools.product(ours, theirs))
    if len(set(gaps)) < len(gaps):
        return  # between equal gaps the first run decides
    pairs, _ = match_progress(records(*ours), records(*theirs), "step")
    turned, _ = match_progress(records(*theirs), records(*ours), "step")
    assert {(a.step, b.step) for a, b in pairs} == {(a.step, b.step) for b, a in turned}


def test_of_newest_only_the_last_two_are_compared() -> None:
    pairs, alone = match_progress(records(1, 2, 3), records(700), "newest")
    assert [(a.step, b.step) for a, b in pairs] == [(3, 700)]
    assert [(u.run, u.step, u.progress, u.reason) for u in alone] == [
        ("a", 1, None, "only the newest checkpoint of each run is compared"),
        ("a", 2, None, "only the newest checkpoint of each run is compared"),
    ]


def told(**known: float | None) -> dict[str, float | None]:
    return {"step": None, "tokens": None, "fraction": None, **known}


def test_tokens_come_before_steps_and_steps_before_fractions() -> None:
    whole, no_tokens, fraction = (
        told(step=1, tokens=10, fraction=0.1), told(step=2, fraction=0.2), told(fraction=0.3),
    )  # fmt: skip
    for others, axis in ((whole, "tokens"), (no_tokens, "step"), (fraction, "fraction")):
        runs = [[("a/1", whole), ("a/2", whole)], [("b/1", whole), ("b/2", others)]]
        assert choose_axis(runs, None) == axis


def test_progress_of_zero_is_recorded_progress() -> None:
    runs = [[("a/0", told(step=0)), ("a/1", told(step=1))]] * 2
    assert choose_axis(runs, None) == "step"


def test_an_axis_that_was_asked_for_is_taken_or_refused_with_the_checkpoint() -> None:
    runs = [[("a/1", told(step=1, fraction=0.5))], [("b/1", told(step=1, tokens=4))]]
    assert choose_axis(runs, "step") == "step"
    with pytest.raises(ComparisonError, match="cannot match by tokens") as error:
        choose_axis(runs, "tokens")
    assert error.value.found == "not recorded in a/1"
    with pytest.raises(UsageError, match="--by is not one of tokens, step, fraction") as wrong:
        choose_axis(runs, "epoch")
    assert wrong.value.found == "'epoch'"
    with pytest.raises(UsageError, match="--by is not one of"):
        choose_axis(runs, "newest")


def test_a_run_of_one_checkpoint_without_progress_is_compared_with_the_newest() -> None:
    base, run = [("base", told())], [("run/1", told(step=1)), ("run/2", told(step=2))]
    assert choose_axis([base, run], None) == "newest"
    with pytest.raises(ComparisonError, match="the runs have no progress in common") as error:
        choose_axis([base * 2, run], None)
    assert error.value.hint == "rename the folders of checkpoints to checkpoint-STEP"


def compare(
    a: int, b: int, *, paired: bool = True, scoring: str = "softmax"
) -> tuple[CheckpointRecord, CheckpointRecord, MatchedPair]:
    one, other = measured_of(a, step=100), measured_of(b, step=101, scoring=scoring)
    bases = (Baseline([], make_draws(one.arrays.groups_S), "none"),) * 2
    found = compare_checkpoints(one, other, bases, SETTINGS, "step", paired=paired)
    return one.record, other.record, found


def test_differences_are_b_minus_a_of_what_analyze_prints() -> None:
    a, b, pair = compare(1, 2)
    assert (pair.progress_a, pair.progress_b, pair.step_a, pair.step_b) == (100.0, 101.0, 100, 101)
    for name in ("fsi", "collapse", "collapse_worst", "information", "heterogeneity"):
        found = pair.differences[name]
        assert (found.a.value, found.b.value) == (a.metrics[name].value, b.metrics[name].value)
        assert found.difference.value == pytest.approx(
            b.metrics[name].value - a.metrics[name].value, abs=1e-14
        )
    assert pair.differences["loss"].a.value == a.loss.value
    assert [(x.layer, x.router) for x in pair.layers] == [(r.layer, r.router) for r in a.layers]
    for place, found in enumerate(pair.layers):
        one, other = a.layers[place].metrics["fsi"], b.layers[place].metrics["fsi"]
        assert found.differences["fsi"].difference.value == pytest.approx(other.value - one.value)


def test_a_checkpoint_against_itself_differs_by_nothing_and_surely() -> None:
    _, _, pair = compare(3, 3)
    known = [d.difference for d in pair.differences.values() if d.difference.value is not None]
    assert len(known) > 20
    assert {m.value for m in known} == {0.0}
    assert {(m.ci_low, m.ci_high) for m in known if m.ci_low is not None} == {(0.0, 0.0)}


def test_the_paired_interval_is_of_sequences_drawn_alike_on_both_sides() -> None:
    one, other = measured_of(1), measured_of(2)
    found = compare_losses(one, other, SETTINGS)
    a, b = one.arrays, other.arrays
    assert a.loss_S is not None
    assert b.loss_S is not None
    assert found.value == pytest.approx(
        b.loss_S.sum() / b.loss_tokens_S.sum() - a.loss_S.sum() / a.loss_tokens_S.sum()
    )
    drawn = []
    for counts_G in make_draws(a.groups_S, SETTINGS.seed).counts_BG:
        times_S = counts_G[a.groups_S]
        tokens = times_S @ a.loss_tokens_S
        drawn.append(times_S @ b.loss_S / tokens - times_S @ a.loss_S / tokens)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found.ci_low, found.ci_high) == (pytest.approx(low), pytest.approx(high))


def test_without_pairs_there_is_a_difference_and_no_interval() -> None:
    _, _, pair = compare(1, 2, paired=False)
    found = pair.differences["fsi"].difference
    assert found.value is not None
    assert (found.ci_low, found.ci_high) == (None, None)
    assert found.reason == "not paired: the probes differ"


def test_what_a_scoring_decides_is_not_compared_across_scorings() -> None:
    _, _, pair = compare(1, 2, scoring="sigmoid")
    for name in ("fsi", "collapse_soft_worst", "logit_max"):
        found = pair.differences[name].difference
        assert found.value is None
        assert found.reason == "not comparable across scorings: sigmoid, softmax"
    assert pair.differences["collapse"].difference.value is not None, "of choices alone"


def test_routers_are_paired_by_layer_and_those_of_one_run_alone_left_out() -> None:
    one, other = measured_of(1, layers=(0, 1, 3)), measured_of(1, layers=(1, 2, 3))
    bases = (Baseline([], make_draws(one.arrays.groups_S)),) * 2
    pair = compare_checkpoints(one, other, bases, SETTINGS, "newest", paired=True)
    assert [x.layer for x in pair.layers] == [1, 3]
    assert {x.differences["fsi"].difference.value for x in pair.layers} == {0.0}
    assert (pair.progress_a, pair.progress_b) == (None, None)
