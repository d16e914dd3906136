"""Tries the rules of lenses (`moegeo experts`, `moegeo routing`) on their records.

A rule here is a pure function from such a record to what it found, so that it is judged again with
other limits and without a model, by the command itself and by `moegeo analyze`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from moegeo_cli.records import Check, Finding, RunRecord
from moegeo_cli.records.lenses import Lenses, LensRecord, command
from moegeo_cli.registry import lenses as find_lenses
from moegeo_cli.registry import load
from moegeo_cli.verdict.interventions import recommend
from moegeo_cli.verdict.rules import Found, Outcome, Skipped, to_finding_and_check
from moegeo_cli.verdict.thresholds import Thresholds

L = TypeVar("L", bound=LensRecord)


@functools.cache
def lens_rules() -> Mapping[str, tuple[str, Callable[[Any, Thresholds], Outcome]]]:
    """For each finding of a lens: the lens, and the rule."""
    found = {}
    for name, lens in find_lenses().items():
        assert lens.lens is not None
        if lens.lens.rules:
            found.update({f: (name, rule) for f, rule in load(lens.lens.rules).items()})
    return found


def judge_lenses(
    lenses: Lenses, limits: Thresholds, steps: tuple[int, ...]
) -> tuple[list[Finding], list[Check]]:
    """Outcomes of the lenses' rules. A rule without a record is skipped.

    Args:
        lenses: each lens's record, or why there is none; rules of a lens that is not named are not
            tried.
        limits: the limits.
        steps: of the checkpoint.
    """
    findings, checks = [], []
    for name, (lens, rule) in lens_rules().items():
        if lens not in lenses:
            continue
        record = lenses[lens]
        outcome = Skipped(record) if isinstance(record, str) else rule(record, limits)
        if isinstance(outcome, Found):
            words = f"{outcome.message} (by `{command(lens)}`)"
            outcome = dataclasses.replace(outcome, message=words)
        finding, check = to_finding_and_check(name, outcome, limits, steps)
        findings += [] if finding is None else [finding]
        checks.append(check)
    return findings, checks


def judge_lens(
    lens: str, record: L, limits: Thresholds, about: RunRecord, framework: str | None
) -> L:
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
    changes: dict[str, Any] = {
        "findings": tuple(findings),
        "interventions": recommend(about, findings, framework, facts=True),
        "checks": tuple(checks),
    }
    return dataclasses.replace(record, **changes)
