"""Rules over what further commands measured of a checkpoint: `moegeo experts` and the like.

A rule here is a pure function from such a record to what it found, so that it is judged again with
other limits and without a model, by the command itself and by `moegeo analyze`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from moegeo_cli.explanations.findings import definitions
from moegeo_cli.records import Check, Finding, RunRecord
from moegeo_cli.records.experts import ExpertsRecord
from moegeo_cli.records.lenses import Lenses, command
from moegeo_cli.records.routing import RoutingRecord
from moegeo_cli.verdict import experts_rules, routing_lens_rules
from moegeo_cli.verdict.interventions import recommend
from moegeo_cli.verdict.rules import Found, Outcome, Skipped, settle
from moegeo_cli.verdict.thresholds import Thresholds

R = TypeVar("R", ExpertsRecord, RoutingRecord)
# By the name of the finding; findings.toml says whose record each one reads.
LENS_RULES: dict[str, Callable[[Any, Thresholds], Outcome]] = {
    "redundant-experts": experts_rules.redundant_experts,
    "shared-direction": routing_lens_rules.shared_direction,
    "routing-ignores-input": routing_lens_rules.routing_ignores_input,
}


def judge_lenses(
    lenses: Lenses, limits: Thresholds, steps: tuple[int, ...]
) -> tuple[list[Finding], list[Check]]:
    """What the rules find in the records that are there; a rule without its record is skipped.

    Args:
        lenses: each lens's record, or why there is none; rules of a lens that is not named are not
            tried.
        limits: the limits.
        steps: of the checkpoint.
    """
    findings, checks = [], []
    for name, rule in LENS_RULES.items():
        lens = definitions()[name].lens
        if lens is None or lens not in lenses:
            continue
        record = lenses[lens]
        outcome = Skipped(record) if isinstance(record, str) else rule(record, limits)
        if isinstance(outcome, Found):
            words = f"{outcome.message} (by `{command(lens)}`)"
            outcome = dataclasses.replace(outcome, message=words)
        finding, check = settle(name, outcome, limits, steps)
        findings += [] if finding is None else [finding]
        checks.append(check)
    return findings, checks


def judge_lens(
    lens: str, record: R, limits: Thresholds, about: RunRecord, framework: str | None
) -> R:
    """A lens's record with its findings, the rules that were tried, and what to do.

    Args:
        lens: which one.
        record: what it measured.
        limits: the limits.
        about: the run that the checkpoint is of, for the settings that advice names; it may be
            without a checkpoint.
        framework: whose keys are named; None for what was found beside the checkpoint.

    Raises:
        UsageError: an unknown framework.
    """
    steps = () if record.step is None else (record.step,)
    findings, checks = judge_lenses({lens: record}, limits, steps)
    return dataclasses.replace(
        record,
        findings=tuple(findings),
        interventions=recommend(about, findings, framework, facts=True),
        checks=tuple(checks),
    )
