"""Applies every file rule to a checkpoint, and forms the verdict on its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from moegeo_cli.commands.check import bias_rules, movement_rules, state_rules, untrained_rules
from moegeo_cli.commands.check.history import Past
from moegeo_cli.records import Check, Finding, Verdict
from moegeo_cli.records.verdict import Health
from moegeo_cli.verdict.judging import ORDER, STATUS
from moegeo_cli.verdict.rules import SEVERITIES, Outcome, to_finding_and_check

FileRule = Callable[[Past], Outcome]
# The rules by the name of their finding in findings.toml.
FILE_RULES: Mapping[str, FileRule] = {
    "router-nonfinite": state_rules.router_nonfinite,
    "router-zero": state_rules.router_zero,
    "experts-damaged": state_rules.experts_damaged,
    "router-frozen": movement_rules.router_frozen,
    "router-no-gradient": state_rules.router_no_gradient,
    "bias-unused": bias_rules.bias_unused,
    "experts-identical": state_rules.experts_identical,
    "experts-frozen": movement_rules.experts_frozen,
    "router-reset": movement_rules.router_reset,
    "experts-reset": movement_rules.experts_reset,
    "bias-rounded": bias_rules.bias_rounded,
    "experts-masked": state_rules.experts_masked,
    "experts-untrained": untrained_rules.experts_untrained,
}
HEALTHY = (
    "no fault was found in the files; they do not say how tokens are routed: run moegeo analyze"
)


def outcomes_of(past: Past) -> dict[str, Outcome]:
    """The outcome of each rule at a checkpoint, by the name of its finding."""
    return {name: rule(past) for name, rule in FILE_RULES.items()}


def judge_files(past: Past, unread: bool) -> Verdict:
    """Judge a checkpoint by its files alone.

    Args:
        past: the checkpoint with its past.
        unread: whether the values of some router could not be read. The checkpoint is then
            inconclusive unless it is failing.
    """
    steps = () if past.now.step is None else (past.now.step,)
    findings: list[Finding] = []
    checks: list[Check] = []
    for name, outcome in outcomes_of(past).items():
        finding, check = to_finding_and_check(name, outcome, past.limits, steps)
        findings += [] if finding is None else [finding]
        checks.append(check)
    own: list[Health] = [STATUS[f.severity] for f in findings]
    status: Health = max(own, key=ORDER.index, default="healthy")
    ranked = sorted(
        (f for f in findings if f.severity != "info"), key=lambda f: -SEVERITIES.index(f.severity)
    )
    reasons = [f"{f.name}: {f.message}" for f in ranked]
    if unread and status != "failing":
        status = "inconclusive"
        reasons.insert(0, "the values of some routers could not be read")
    if status == "healthy":
        reasons.append(HEALTHY)
    return Verdict(
        status, status, "undetermined", "calibrated", tuple(findings), tuple(reasons), tuple(checks)
    )
