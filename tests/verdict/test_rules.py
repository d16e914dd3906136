"""Every finding where it should be found, and where it should not."""

from __future__ import annotations

import dataclasses

import pytest

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.records import Coverage, Metric, RunRecord
from moegeo_cli.verdict import judge, load_thresholds
from moegeo_cli.verdict.judging import RULES
from moegeo_cli.verdict.lenses import lens_rules
from tests.verdict.conftest import checkpoint, find, layer, metric, run_of, verdict_of


def test_a_healthy_run_has_no_finding_and_every_rule_was_tried(healthy: RunRecord) -> None:
    verdict = verdict_of(healthy)
    assert verdict.status == verdict.routing == "healthy"
    assert verdict.performance == "undetermined"
    assert verdict.findings == ()
    of_files = {name for name, about in definitions().items() if about.lens == "check"}
    assert {c.name for c in verdict.checks} == set(definitions())
    assert {*RULES, *lens_rules(), *of_files} == set(definitions())
    assert all(c.reason for c in verdict.checks if c.outcome == "skipped")


def test_dead_experts_without_power_are_unknown() -> None:
    weak = Metric(None, reason="600 tokens cannot tell: about 34,000 are needed")
    run = run_of(checkpoint(100, layer(0, dead_experts=weak)))
    assert find(run, "dead-experts") is None
    found = find(run, "sample-too-small")
    assert found is not None
    assert "cannot tell" in found.message
    assert found.severity == "info"


@pytest.mark.parametrize(
    ("changes", "fraction", "expected"),
    [
        ({"fsi": 0.8, "collapse": 0.1}, 0.05, True),
        ({"fsi": 0.8, "collapse": 0.1}, 0.5, False),
        ({"fsi": 0.8, "collapse": 0.1}, 0.0, False),
        ({"fsi": 0.8, "collapse": 0.4}, 0.05, False),
        ({"fsi": 0.5, "collapse": 0.1}, 0.05, False),
        ({"fsi": 0.8, "collapse": 0.1}, None, False),
    ],
)
def test_locked_is_sharp_and_balanced_early(
    changes: dict[str, float], fraction: float | None, expected: bool
) -> None:
    run = run_of(checkpoint(50, layer(0, **changes), fraction=fraction))
    assert (find(run, "router-locked") is not None) == expected


def test_uniform_needs_both_p_and_the_weights_to_say_nothing() -> None:
    nothing = {"information": metric(0.003, 0.002), "information_dispatch": metric(0.004, 0.002)}
    assert find(run_of(checkpoint(9, layer(0, **nothing))), "router-uniform") is not None
    mixed = {**nothing, "information_dispatch": metric(0.3)}
    assert find(run_of(checkpoint(9, layer(0, **mixed))), "router-uniform") is None


@pytest.mark.parametrize(
    ("name", "change", "severity"),
    [("logit-explosion", {"logit_max": 90.0}, "watch"), ("near-ties", {"near_ties": 0.2}, "info")],
)
def test_limits_hold_for_the_whole_interval(
    name: str, change: dict[str, float], severity: str
) -> None:
    (key, value), *_ = change.items()
    found = find(run_of(checkpoint(9, layer(0), layer(4, **change))), name)
    assert found is not None
    assert (found.severity, found.layers) == (severity, (4,))
    wide = metric(value, width=2 * value)
    assert find(run_of(checkpoint(9, layer(4, **{key: wide}))), name) is None


@pytest.mark.parametrize(
    ("state", "name"), [("nonfinite", "router-nonfinite"), ("zero", "router-zero")]
)
def test_exact_facts_fail_without_a_calibrated_limit(state: str, name: str) -> None:
    run = run_of(checkpoint(9, layer(0), layer(2, state=state)))
    found = find(run, name)
    assert found is not None
    assert (found.severity, found.layers) == ("failing", (2,))
    assert verdict_of(run).status == "failing"


def test_heterogeneity_findings_inform_and_never_decide() -> None:
    rising = [
        checkpoint(s, fhs=metric(v * 2), heterogeneity_trace=v)
        for s, v in ((1, 0.6), (2, 0.7), (3, 0.9))
    ]
    run = run_of(*rising)
    assert find(run, "heterogeneity-above-init") is not None
    assert find(run, "heterogeneity-rising") is not None
    assert verdict_of(run).status == "healthy"
    assert find(run_of(*rising[:2]), "heterogeneity-rising") is None
    wide = run_of(checkpoint(3, fhs=metric(1.5, width=1.2)))
    assert find(wide, "heterogeneity-above-init") is None


def test_partial_coverage_makes_the_verdict_inconclusive_unless_it_fails() -> None:
    partial = Coverage(3, 2, {"model.layers.2.mlp.gate": "not linear"})
    run = run_of(checkpoint(9, coverage=partial))
    verdict = verdict_of(run)
    assert verdict.routing == verdict.status == "inconclusive"
    assert "not linear" in verdict.findings[0].message
    failing = run_of(checkpoint(9, layer(0, state="zero"), coverage=partial))
    assert verdict_of(failing).status == "failing"


def test_few_sequences_are_said() -> None:
    found = find(run_of(sequences=7), "sample-too-small")
    assert found is not None
    assert "7 sequences" in found.message


def test_the_newest_checkpoint_decides_and_what_passed_is_resolved() -> None:
    sick = checkpoint(100, layer(0, state="zero"))
    judged = judge(run_of(sick, checkpoint(200)))
    assert judged.checkpoints[0].verdict is not None
    assert judged.checkpoints[0].verdict.status == "failing"
    assert judged.verdict is not None
    assert judged.verdict.status == "healthy"
    (resolved,) = judged.verdict.findings
    assert (resolved.name, resolved.state, resolved.steps) == ("router-zero", "resolved", (100,))


def test_what_cannot_be_decided_any_more_is_not_resolved() -> None:
    spoilt = checkpoint(100, loss=metric(9.0))
    probe = {"unigram_loss": 5.0}
    both = judge(run_of(spoilt, checkpoint(200), probe=probe))
    assert [f.name for f in both.verdict.findings if f.state == "resolved"] == ["probe-unfit"]
    unknown = checkpoint(200, loss=metric(None, reason="no loss"))
    untold = judge(run_of(spoilt, unknown, probe=probe))
    assert [f.name for f in untold.verdict.findings if f.state == "resolved"] == []
    (check,) = [c for c in untold.verdict.checks if c.name == "probe-unfit"]
    assert check.outcome == "skipped"


def test_no_checkpoint_sees_its_future() -> None:
    first = judge(run_of(checkpoint(1))).checkpoints[0]
    both = judge(run_of(checkpoint(1), checkpoint(2, layer(0, state="zero")))).checkpoints[0]
    assert first == both


@pytest.mark.parametrize(
    ("fhs", "status"),
    [(1.4, "failing"), (0.7, "healthy"), (1.0, "healthy"), (1.000001, "healthy"),
     (None, "inconclusive")],
)  # fmt: skip
def test_the_papers_rule_as_published(fhs: float | None, status: str) -> None:
    run = run_of(checkpoint(9, layer(0, collapse=0.99), fhs=metric(fhs, 1.5, reason="no baseline")))
    verdict = verdict_of(run, policy="paper")
    assert (verdict.status, verdict.policy) == (status, "paper")
    assert any("of the runs that did not fail" in reason for reason in verdict.reasons)
    assert all(f.severity != "failing" for f in verdict.findings if f.name == "router-collapse")


def test_every_threshold_has_a_source_and_the_shipped_ones_that_were_measured_are_known() -> None:
    limits = load_thresholds()
    assert all(limit.threshold.source for limit in limits.values())
    for limit in limits.values():  # no rate without what it is a rate of
        rated = limit.threshold.false_positive_rate is not None
        assert ("; rates: " in limit.threshold.source) == rated
    measured = {n for n, limit in limits.items() if limit.calibrated}
    assert measured == {
        "router-collapse", "loss-behind-reference", "loss-diverged", "learning-rate-high",
    }  # fmt: skip


def test_metrics_that_are_null_pass_no_check_and_crash_none() -> None:
    empty = dataclasses.replace(
        layer(0), metrics={n: Metric(None, reason="x") for n in layer(0).metrics}
    )
    verdict = verdict_of(run_of(checkpoint(9, empty)))
    assert verdict.status == "inconclusive"
