"""Every finding where it should be found, and where it should not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from moegeo_cli.records import Coverage, Finding, Metric, RunRecord, Verdict
from moegeo_cli.verdict import judge, load_thresholds
from moegeo_cli.verdict.judging import RULES
from moegeo_cli.verdict.lenses import LENS_RULES
from moegeo_cli.verdict.rules import definitions
from moegeo_cli.verdict.thresholds import collapse_limit, is_studied
from tests.verdict.conftest import checkpoint, layer, metric, run_of


def verdict_of(run: RunRecord, **options: Any) -> Verdict:
    verdict = judge(run, **options).verdict
    assert verdict is not None
    return verdict


def find(run: RunRecord, name: str, **options: Any) -> Finding | None:
    return next(
        (f for f in verdict_of(run, **options).findings if f.name == name and f.state == "active"),
        None,
    )


def test_a_healthy_run_has_no_finding_and_every_rule_was_tried(healthy: RunRecord) -> None:
    verdict = verdict_of(healthy)
    assert verdict.status == verdict.routing == "healthy"
    assert verdict.performance == "undetermined"
    assert verdict.findings == ()
    assert {c.name for c in verdict.checks} == {*RULES, *LENS_RULES} == set(definitions())
    assert all(c.reason for c in verdict.checks if c.outcome == "skipped")


def test_the_collapse_limit_is_that_of_the_nearest_cell() -> None:
    limit = load_thresholds()["router-collapse"]
    cells = {(c.experts, c.top_k): c.value for c in limit.cells}
    assert collapse_limit(limit, 8, 2) == cells[8, 2] == limit.value
    assert collapse_limit(limit, 9, 2) == cells[8, 2]
    largest = max(cells)
    assert collapse_limit(limit, 100 * largest[0], 100) == cells[largest]
    assert not is_studied(limit, 9, 2)
    own = load_thresholds({"router-collapse": 0.3})["router-collapse"]
    assert collapse_limit(own, 4096, 8) == 0.3
    assert is_studied(own, 4096, 8)


def test_collapse_at_the_start_of_training_is_watched() -> None:
    high = layer(0, collapse=0.95)
    for fraction, severity in ((0.1, "watch"), (0.2, "failing"), (None, "failing")):
        found = find(run_of(checkpoint(100, high, fraction=fraction)), "router-collapse")
        assert found is not None
        assert found.severity == severity
        assert ("early in training" in found.message) == (fraction == 0.1)


def test_collapse_at_an_e_that_was_not_studied_fails_by_the_definition_alone() -> None:
    for entropy, severity in ((0.5, "failing"), (0.69, "watch"), (0.9, "watch")):
        high = layer(0, collapse=0.95, experts=512, top_k=8, entropy_load_rescaled=entropy)
        found = find(run_of(checkpoint(100, high)), "router-collapse")
        assert found is not None
        assert found.severity == severity
        assert "nearest E and K that were studied" in found.message
    found = find(run_of(checkpoint(100, layer(0, collapse=0.95, experts=512, top_k=8))),
                 "router-collapse")  # fmt: skip
    assert found is not None
    assert found.severity == "watch"


def test_collapse_fails_where_its_whole_interval_is_over_the_limit() -> None:
    bound = collapse_limit(load_thresholds()["router-collapse"], 8, 2)
    for value, width, expected in (
        (bound + 0.2, 0.1, "failing"),
        (bound + 0.02, 0.1, "watch"),
        (bound - 0.02, 0.1, None),
    ):
        run = run_of(checkpoint(100, layer(0), layer(1, collapse=metric(value, width))))
        found = find(run, "router-collapse")
        assert (found.severity if found else None) == expected
        if found:
            assert found.layers == (1,)
            assert found.threshold is not None
            assert found.threshold.value == pytest.approx(bound)


def test_collapse_that_its_null_explains_is_none() -> None:
    noisy = metric(0.7, 0.02, null_value=0.6)
    assert find(run_of(checkpoint(100, layer(0, collapse=noisy))), "router-collapse") is None


def test_routing_that_cannot_collapse_so_far_is_inconclusive() -> None:
    null = Metric(None, reason="every token uses every expert")
    verdict = verdict_of(run_of(checkpoint(100, layer(0, collapse=null, experts=2))))
    assert verdict.routing == "inconclusive"
    assert verdict.status == "inconclusive"


def test_dead_experts_watch_and_name_what_lasts() -> None:
    before = checkpoint(100, layer(0, dead=(3, 5)))
    now = checkpoint(200, layer(0, dead=(3, 6), dead_in_all_domains=(3,)), layer(1))
    found = find(run_of(before, now), "dead-experts")
    assert found is not None
    assert found.severity == "watch"
    assert found.layers == (0,)
    assert "2 experts unused on this probe" in found.message
    assert "1 in every domain" in found.message
    assert "1 of them at the checkpoint before" in found.message


def test_dead_experts_without_power_are_unknown() -> None:
    weak = Metric(None, reason="600 tokens cannot tell: about 34,000 would")
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
    ("name", "change"),
    [("logit-explosion", {"logit_max": 90.0}), ("near-ties", {"near_ties": 0.2})],
)
def test_limits_hold_for_the_whole_interval(name: str, change: dict[str, float]) -> None:
    (key, value), *_ = change.items()
    found = find(run_of(checkpoint(9, layer(0), layer(4, **change))), name)
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (4,))
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


def test_loss_behind_a_reference_is_performance_alone() -> None:
    run, other = run_of(), run_of()
    assert verdict_of(run).performance == "undetermined"
    gap = {"checkpoint-100": metric(0.5, 0.1)}
    behind = verdict_of(run, reference=other, paired_losses=gap)
    assert (behind.routing, behind.performance) == ("healthy", "watch")
    # Sure, and yet what runs show that end well: said, and no more.
    near = verdict_of(run, reference=other, paired_losses={"checkpoint-100": metric(0.1, 0.05)})
    assert (near.performance, [f.name for f in near.findings]) == (
        "healthy", ["loss-behind-reference"],
    )  # fmt: skip
    assert "not surely over the limit of 9" in near.findings[0].message
    even = {"checkpoint-100": metric(0.01, 0.1)}
    assert verdict_of(run, reference=other, paired_losses=even).performance == "healthy"
    assert verdict_of(run, reference=other, paired_losses={}).performance == "undetermined"


def log(*losses: float) -> list[dict[str, Any]]:
    return [{"step": i, "loss": v} for i, v in enumerate(losses)]


def test_a_spike_is_a_jump_over_the_losses_before() -> None:
    calm = [3.0 - 0.01 * i for i in range(20)]
    assert find(run_of(log=log(*calm)), "loss-spike") is None
    found = find(run_of(log=log(*calm, 4.5, 2.8)), "loss-spike")
    assert found is not None
    assert "step 20" in found.message
    assert found.severity == "watch"
    later = run_of(checkpoint(10), log=log(*calm, 4.5))
    assert find(later, "loss-spike") is None, "a log beyond the checkpoint is its future"


def test_a_loss_that_is_not_finite_fails() -> None:
    run = run_of(log=[{"step": 5, "loss": None, "nonfinite": ["loss"]}])
    verdict = verdict_of(run)
    assert (verdict.performance, verdict.routing) == ("failing", "healthy")


@pytest.mark.parametrize(
    ("training", "framework", "expected"),
    [
        ({"router_aux_loss_coef": 0.01}, "transformers", True),
        ({"router_aux_loss_coef": 0.01, "output_router_logits": True}, "transformers", False),
        ({"router_aux_loss_coef": 0.0}, "transformers", False),
        ({"router_aux_loss_coef": 0.01}, "megatron", False),
        ({"aux_loss_coef": 0.01}, "nanotron", True),
        ({}, "transformers", False),
    ],
)
def test_balancing_that_never_happens(
    training: dict[str, Any], framework: str, expected: bool
) -> None:
    run = run_of(training=training, framework=framework)
    assert (find(run, "balancing-inactive") is not None) == expected


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


def test_an_uncalibrated_limit_cannot_fail_a_run_and_a_users_own_can() -> None:
    run = run_of(checkpoint(9, layer(0, collapse=0.4)))
    assert find(run, "router-collapse") is None
    own = load_thresholds({"router-collapse": 0.3})
    found = find(run, "router-collapse", thresholds=own)
    assert found is not None
    assert found.severity == "failing"
    assert found.threshold is not None
    assert found.threshold.source == "set by the user"
    unproven = load_thresholds({"router-collapse": {"value": 0.3, "source": "uncalibrated: mine"}})
    weaker = find(run, "router-collapse", thresholds=unproven)
    assert weaker is not None
    assert weaker.severity == "watch"


def test_every_threshold_has_a_source_and_the_shipped_ones_that_were_measured_are_known() -> None:
    limits = load_thresholds()
    assert all(limit.threshold.source for limit in limits.values())
    for limit in limits.values():  # no rate without what it is a rate of
        rated = limit.threshold.false_positive_rate is not None
        assert ("; rates: " in limit.threshold.source) == rated
    measured = {n for n, limit in limits.items() if limit.calibrated}
    assert measured == {"router-collapse", "loss-behind-reference"}


def test_metrics_that_are_null_pass_no_check_and_crash_none() -> None:
    empty = dataclasses.replace(
        layer(0), metrics={n: Metric(None, reason="x") for n in layer(0).metrics}
    )
    verdict = verdict_of(run_of(checkpoint(9, empty)))
    assert verdict.status == "inconclusive"
