"""Apply the rules of lenses (`moegeo experts`, `moegeo routing`) to their records.

Each rule is a pure function of a record, so a stored record can be judged again with other limits
and without a model. The lens's own command and `moegeo analyze` both do so.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from moegeo_cli.records import Check, Finding, RunRecord
from moegeo_cli.records.lenses import Lenses, LensRecord, command_name
from moegeo_cli.registry import lenses as find_lenses
from moegeo_cli.registry import load
from moegeo_cli.verdict.interventions import recommend
from moegeo_cli.verdict.rules import Found, Outcome, Skipped, to_finding_and_check
from moegeo_cli.verdict.thresholds import Thresholds

L = TypeVar("L", bound=LensRecord)


@functools.cache
def lens_rules() -> Mapping[str, tuple[str, Callable[[Any, Thresholds], Outcome]]]:
    """For the name of each finding of a lens: the lens and the rule."""
    found = {}
    for name, lens in find_lenses().items():
        assert lens.lens is not None
        if lens.lens.rules:
            found.update({f: (name, rule) for f, rule in load(lens.lens.rules).items()})
    return found


def judge_lenses(
    lenses: Lenses, limits: Thresholds, steps: tuple[int, ...]
) -> tuple[list[Finding], list[Check]]:
    """Apply the rules of lenses. A rule without a record is skipped.

    Args:
        lenses: each lens's record, or the reason why there is none. Rules of other lenses are not
            tried.
        limits: the limits.
        steps: the step of the checkpoint; empty if unknown.

    Returns:
        The findings, and one check for each rule.
    """
    findings, checks = [], []
    for name, (lens, rule) in lens_rules().items():
        if lens not in lenses:
            continue
        record = lenses[lens]
        outcome = Skipped(record) if isinstance(record, str) else rule(record, limits)
        if isinstance(outcome, Found):
            words = f"{outcome.message} (by `{command_name(lens)}`)"
            outcome = dataclasses.replace(outcome, message=words)
        finding, check = to_finding_and_check(name, outcome, limits, steps)
        findings += [] if finding is None else [finding]
        checks.append(check)
    return findings, checks


def judge_lens(
    lens: str, record: L, limits: Thresholds, about: RunRecord, framework: str | None
) -> L:
    """Add findings, checks and interventions to a lens's record.

    Args:
        lens: name of the lens.
        record: its record.
        limits: the limits.
        about: the run of the checkpoint, for the settings that advice names; it may have no
            checkpoints.
        framework: the framework whose keys are named; None for the one that the files point to.

    Raises:
        UsageError: an unknown framework.
    """
    steps = () if record.step is None else (record.step,)
    findings, checks = judge_lenses({lens: record}, limits, steps)
    changes: dict[str, Any] = {
        "findings": tuple(findings),
        "interventions": recommend(about, findings, framework, facts=True),
        "checks": tuple(checks),
    }
    return dataclasses.replace(record, **changes)
