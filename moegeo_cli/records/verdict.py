"""What was judged: findings with their evidence, the verdict, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Required, TypedDict

from msgspec import Meta

from moegeo_cli.records.fields import ADDED_LATER, Count, Share, about
from moegeo_cli.records.metric import Metric

Severity = Literal["info", "watch", "failing"]
Axis = Literal["routing", "performance", "measurement"]
Health = Literal["healthy", "watch", "failing", "inconclusive"]
Performance = Literal["healthy", "watch", "failing", "inconclusive", "undetermined"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A number that a finding rests on."""

    name: str
    metric: Metric
    layer: Count | None = None
    router: str | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """The limit that a finding compares with, and what was measured of it."""

    value: float | None
    source: Annotated[str, about("where it comes from: a citation, or uncalibrated")]
    precision: Annotated[Share | None, about("null where nobody measured it")] = None
    recall: Annotated[Share | None, about("null where nobody measured it")] = None
    false_positive_rate: Annotated[Share | None, about("null where nobody measured it")] = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a rule saw."""

    id: str
    name: str
    severity: Severity
    axis: Axis
    message: str
    layers: tuple[Count, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    threshold: Threshold | None = None
    state: Literal["active", "resolved"] = "active"
    steps: Annotated[tuple[Count, ...], about("steps at which the rule held")] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """A rule that was tried; where it found something, a finding has its id."""

    id: str
    name: str
    axis: Axis
    outcome: Literal["passed", "found", "skipped"]
    reason: Annotated[
        str | None, about("why a skipped rule could not be decided: too few checkpoints, ...")
    ] = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement. undetermined: there was nothing to judge the loss against."""

    status: Health
    routing: Health
    performance: Performance
    policy: str
    findings: tuple[Finding, ...] = ()
    reasons: Annotated[
        tuple[str, ...], about("why the status is what it is, one sentence each")
    ] = ()
    checks: Annotated[tuple[Check, ...], about("every rule that was tried")] = ()


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """The setting that an intervention changes, in the user's own framework."""

    framework: str
    key: Annotated[str | None, about("null where the framework has no such key")]
    current: Any = None
    suggested: Any = None
    live: Annotated[bool | None, about("does the framework read the key; null: not known")] = None
    note: str | None = None
    lines: Annotated[str | None, about("code to add where there is no key")] = None


Interval = Annotated[list[float], Meta(min_length=2, max_length=2)]
CountOf = Annotated[list[Count], Meta(min_length=2, max_length=2)]  # so many, of so many


class Grounds(TypedDict, total=False):
    """How well it is known that an intervention helps, and what the evidence study measured."""

    grade: Required[Literal["measured", "literature", "untested"]]
    source: str
    finding: Annotated[str, about("the finding that the study answered with it")]
    saved: Annotated[float, about("of stopping: share of all compute")]
    stopped_failing: Annotated[CountOf, about("failing runs stopped, of how many")]
    stopped_sound: Annotated[CountOf, about("sound runs stopped, of how many")]
    recovered: Annotated[Count, about("restarts that did not fail in the end")]
    recovered_control: Annotated[Count, about("of the same runs and seeds without a change")]
    n: Annotated[Count, about("restarts")]
    runs: Annotated[Count, about("runs that were restarted")]
    difference: Annotated[float, about("of the two shares that recovered")]
    interval: Annotated[Interval, about("95% interval of the difference")]
    performance: Annotated[float, about("mean change of final performance; 1: the task's best")]
    performance_interval: Annotated[Interval, about("95% interval of it")]
    collapsed: Annotated[Count, about("restarts that end collapsed")]
    collapsed_control: Annotated[Count, about("of those without a change")]
    literature: Annotated[str, about("a citation, beside what was measured")]


@dataclass(frozen=True, slots=True)
class Intervention:
    """What to change, why it applies here, how to see that it worked, how well that is known."""

    id: str
    title: str
    action: str
    findings: Annotated[tuple[str, ...], about("names of the findings that it answers")]
    why: str
    key: ConfigKey
    check: Annotated[str, about("how to see that it worked")]
    evidence: Grounds
    conflicts: tuple[str, ...] = ()
    layers: tuple[Count, ...] = ()
    folded: Annotated[
        bool,
        about("measured, and nothing was gained by it: reports name it in one line"),
        ADDED_LATER,
    ] = False
