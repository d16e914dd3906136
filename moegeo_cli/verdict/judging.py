"""Form the verdict of a run: try every rule at every checkpoint, on two axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from moegeo_cli.records import (
    Check,
    CheckpointRecord,
    Finding,
    Metric,
    RunRecord,
    Verdict,
)
from moegeo_cli.records.lenses import Lenses, absent_reason
from moegeo_cli.records.verdict import Axis, Health, Performance, Severity
from moegeo_cli.registry import lenses as find_lenses
from moegeo_cli.verdict import load_rules, loss_rules, routing_rules, run_rules, training_rules
from moegeo_cli.verdict.files import FileOutcomes, merge_file_outcomes
from moegeo_cli.verdict.lenses import judge_lenses
from moegeo_cli.verdict.rules import SEVERITIES, Rule, Situation, Skipped, to_finding_and_check
from moegeo_cli.verdict.thresholds import OWN, Limit, Thresholds, load_thresholds
from moegeo_cli.verdict.training_log import TrainingFigures

RULES: dict[str, Rule] = {
    "router-collapse": load_rules.router_collapse,
    "dead-experts": load_rules.dead_experts,
    "router-locked": routing_rules.router_locked,
    "router-uniform": routing_rules.router_uniform,
    "logit-explosion": routing_rules.logit_explosion,
    "router-nonfinite": routing_rules.router_nonfinite,
    "router-zero": routing_rules.router_zero,
    "experts-damaged": routing_rules.experts_damaged,
    "experts-masked": routing_rules.experts_masked,
    "near-ties": routing_rules.near_ties,
    "router-frozen": training_rules.router_frozen,
    "router-no-gradient": training_rules.router_no_gradient,
    "bias-unused": training_rules.bias_unused,
    "bias-rounded": training_rules.bias_rounded,
    "bias-wrong-sign": training_rules.bias_wrong_sign,
    "experts-identical": training_rules.experts_identical,
    "heterogeneity-above-init": run_rules.heterogeneity_above_init,
    "heterogeneity-rising": run_rules.heterogeneity_rising,
    "loss-behind-reference": loss_rules.loss_behind_reference,
    "loss-spike": loss_rules.loss_spike,
    "loss-diverged": loss_rules.loss_diverged,
    "probe-unfit": loss_rules.probe_unfit,
    "learning-rate-high": loss_rules.learning_rate_high,
    "balancing-inactive": training_rules.balancing_inactive,
    "coverage-incomplete": run_rules.coverage_incomplete,
    "sample-too-small": run_rules.sample_too_small,
}
STATUS: Mapping[Severity, Health] = {"info": "healthy", "watch": "watch", "failing": "failing"}
ORDER: tuple[Health, ...] = ("healthy", "watch", "inconclusive", "failing")
ROUNDING = 1e-5  # relative rounding error of a Fisher that was replayed in float32


def judge(
    run: RunRecord,
    *,
    reference: RunRecord | None = None,
    policy: str = "calibrated",
    thresholds: Thresholds | None = None,
    paired_losses: Mapping[str, Metric] | None = None,
    lenses: Mapping[str, Lenses] | None = None,
    files: Mapping[str, FileOutcomes] | None = None,
) -> RunRecord:
    """Judge every checkpoint together with the earlier ones, and the run by its newest one.

    Args:
        run: the measured run.
        reference: a healthy run with which the loss was compared; None without one.
        policy: "calibrated" for the rules with evidence, or "paper" for [GM]'s rule.
        thresholds: the limits; None for the shipped ones.
        paired_losses: loss minus the reference's loss, by checkpoint path, where progress matches.
        lenses: records of further commands, by checkpoint path.
        files: outcomes of `moegeo check`, by checkpoint path; None if the files were not checked.

    Returns:
        The run with all verdicts filled in.
    """
    limits = thresholds if thresholds is not None else load_thresholds()
    losses = None if reference is None else paired_losses or {}
    figures = TrainingFigures(run.run.get("log") or ())
    judged: list[CheckpointRecord] = []
    for place, checkpoint in enumerate(run.checkpoints):
        situation = Situation(run, run.checkpoints[: place + 1], limits, losses, figures)
        nothing: Lenses = {lens: absent_reason(lens) for lens in find_lenses()}
        lens_records = (lenses or {}).get(checkpoint.path, nothing)
        file_outcomes = (files or {}).get(checkpoint.path, {})
        verdict = _verdict(situation, lens_records, file_outcomes, policy, reference)
        judged.append(dataclasses.replace(checkpoint, verdict=verdict))
    settings = {**run.settings, **changed_limits(limits)}
    return dataclasses.replace(
        run, settings=settings, checkpoints=tuple(judged), verdict=add_history(judged)
    )


def _set_by(source: str) -> str:
    """Who set a limit: "set by you in pyproject.toml"."""
    return f"set by you{source.removeprefix(OWN)}" if source.startswith(OWN) else "set by you"


def changed_limits(limits: Thresholds) -> dict[str, Any]:
    """The limits that differ from the shipped ones, for the record's settings."""
    own = {
        name: {"value": limit.value, "source": limit.threshold.source}
        for name, limit in limits.items()
        if limit != load_thresholds()[name]
    }
    return {"thresholds": own} if own else {}


def _verdict(
    situation: Situation,
    lenses: Lenses,
    files: FileOutcomes,
    policy: str,
    reference: RunRecord | None,
) -> Verdict:
    findings, checks, undecided = [], [], []
    steps = _steps(situation.now)
    outcomes = {name: rule(situation) for name, rule in RULES.items()}
    for name, outcome in merge_file_outcomes(outcomes, files).items():
        finding, check = to_finding_and_check(name, outcome, situation.limits, steps)
        findings += [] if finding is None else [finding]
        checks.append(check)
        if isinstance(outcome, Skipped) and outcome.undecided:
            undecided.append(outcome.reason)
    found, tried = judge_lenses(lenses, situation.limits, steps)
    findings += found
    checks += tried
    if policy == "paper":
        return _paper_verdict(situation, findings, checks)
    routing = _axis(findings, "routing")
    partial = any(f.name == "coverage-incomplete" for f in findings)
    if routing != "failing" and (partial or undecided):
        routing = "inconclusive"
    performance: Performance = _axis(findings, "performance")
    if performance == "healthy" and not _was_compared_with(reference, checks):
        performance = "undetermined"
    known = [s for s in (routing, performance) if s != "undetermined"]
    status = max(known, key=ORDER.index)
    reasons = _reasons(findings, routing, performance, partial, undecided)
    reasons += tuple(
        f"limit {_set_by(row['source'])}: {name} = {row['value']:g}"
        for name, row in changed_limits(situation.limits).get("thresholds", {}).items()
    )
    distance = loss_rules.probe_distance(situation)
    reasons += (distance,) if distance else ()
    return Verdict(status, routing, performance, "calibrated", tuple(findings), reasons,
                   tuple(checks))  # fmt: skip


def _axis(findings: list[Finding], axis: Axis) -> Health:
    own = [STATUS[f.severity] for f in findings if f.axis == axis]
    return max(own, key=ORDER.index, default="healthy")


def _was_compared_with(reference: RunRecord | None, checks: list[Check]) -> bool:
    tried = next(c for c in checks if c.name == "loss-behind-reference")
    return reference is not None and tried.outcome != "skipped"


def _paper_verdict(situation: Situation, findings: list[Finding], checks: list[Check]) -> Verdict:
    """[GM]'s rule as published: an FHS above 1 is failing, whatever its interval."""
    metric = situation.now.metrics.get("fhs")
    limit = situation.limits["heterogeneity-above-init"]
    status: Health = "inconclusive"
    if metric is None or metric.value is None:
        why = (metric.reason if metric else None) or "not measured"
        reason = f"FHS could not be measured: {why}"
    else:
        # A baseline compared with itself gives 1 up to rounding: that is not growth.
        above = metric.value > limit.value * (1.0 + ROUNDING)
        status = "failing" if above else "healthy"
        reason = f"FHS is {metric.value:.4g}, {'above' if above else 'not above'} {limit.value:g}"
    listed = tuple(
        f
        if f.axis == "measurement"
        else dataclasses.replace(
            f, severity="failing" if f.id == "MG201" and status == "failing" else "info"
        )
        for f in findings
    )
    return Verdict(status, status, "undetermined", "paper", listed, (reason, _paper(limit)),
                   tuple(checks))  # fmt: skip


def _paper(limit: Limit) -> str:
    """A sentence for the verdict: how often the paper's rule was wrong in the evidence study."""
    words = "[GM] calls a run failing where FHS > 1."
    rate = limit.threshold.false_positive_rate
    if rate is None:
        return f"{words} This limit was set by the user, and no rate was measured for it"
    return (
        f"{words} In the evidence study {rate:.0%} of the runs that did not fail were above it "
        "at 10% of training, and FHS predicted nothing that the loss did not "
        "(docs/results/evidence.md)"
    )


def _reasons(
    findings: list[Finding],
    routing: str,
    performance: str,
    partial: bool,
    undecided: list[str],
) -> tuple[str, ...]:
    ranked = sorted(
        (f for f in findings if f.severity != "info"),
        key=lambda f: -SEVERITIES.index(f.severity),
    )
    reasons = [f"{f.name}: {f.message}" for f in ranked]
    if routing == "inconclusive" and partial:
        reasons.insert(0, "some routers were not measured, so routing cannot be called healthy")
    reasons += undecided
    if routing == "healthy":
        reasons.append("no router is over a limit")
    if performance == "undetermined":
        reasons.append("performance is undetermined: no reference at the same progress "
                       "(--reference RUN)")  # fmt: skip
    return tuple(reasons)


class Judged(Protocol):
    """A checkpoint with its verdict."""

    @property
    def step(self) -> int | None:
        """Its optimizer step; None if unknown."""

    @property
    def verdict(self) -> Verdict | None:
        """Its verdict."""


def add_history(judged: Sequence[Judged]) -> Verdict:
    """The newest checkpoint's verdict, with the history of its findings.

    Args:
        judged: checkpoints of a run, oldest first, each with a verdict.

    Returns:
        The verdict. Each finding has the steps at which it held; findings of earlier checkpoints
        that no longer hold are added as resolved.
    """
    last = judged[-1].verdict
    assert last is not None
    steps: dict[str, list[int]] = {}
    latest: dict[str, Finding] = {}
    for checkpoint in judged:
        assert checkpoint.verdict is not None
        for finding in checkpoint.verdict.findings:
            steps.setdefault(finding.name, []).extend(_steps(checkpoint))
            latest[finding.name] = finding
    active = {f.name for f in last.findings}
    # A rule that was skipped on the newest checkpoint did not resolve its finding.
    active |= {c.name for c in last.checks if c.outcome == "skipped"}
    findings = [dataclasses.replace(f, steps=tuple(steps[f.name])) for f in last.findings]
    findings += [
        dataclasses.replace(f, state="resolved", steps=tuple(steps[name]))
        for name, f in latest.items()
        if name not in active
    ]
    return dataclasses.replace(last, findings=tuple(findings))


def _steps(checkpoint: Judged) -> tuple[int, ...]:
    return () if checkpoint.step is None else (checkpoint.step,)
