"""The verdict as data: findings with evidence, tried rules, and interventions."""

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
    """A metric on which a finding is based."""

    name: str
    metric: Metric
    layer: Count | None = None
    router: str | None = None


@dataclass(frozen=True, slots=True)
class Threshold:
    """The limit of a finding, its source, and its measured error rates."""

    value: float | None
    source: Annotated[str, about("where it comes from: a citation, or uncalibrated")]
    precision: Annotated[Share | None, about("null if not measured")] = None
    recall: Annotated[Share | None, about("null if not measured")] = None
    false_positive_rate: Annotated[Share | None, about("null if not measured")] = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that holds for a checkpoint."""

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
    """A rule that was tried, with its outcome; if it is "found", a finding has the same id."""

    id: str
    name: str
    axis: Axis
    outcome: Literal["passed", "found", "skipped"]
    reason: Annotated[
        str | None, about("why a skipped rule could not be decided: too few checkpoints, ...")
    ] = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on a checkpoint or a run. undetermined: there was no reference for the loss."""

    status: Health
    routing: Health
    performance: Performance
    policy: str
    findings: tuple[Finding, ...] = ()
    reasons: Annotated[tuple[str, ...], about("the reasons for the status, one sentence each")] = ()
    checks: Annotated[tuple[Check, ...], about("every rule that was tried")] = ()


@dataclass(frozen=True, slots=True)
class ConfigKey:
    """The setting that an intervention changes, in the user's own framework."""

    framework: str
    key: Annotated[str | None, about("null if the framework has no such key")]
    current: Any = None
    suggested: Any = None
    live: Annotated[
        bool | None, about("whether the framework reads the key; null if not known")
    ] = None
    note: str | None = None
    lines: Annotated[str | None, about("code to add if there is no key")] = None


Interval = Annotated[list[float], Meta(min_length=2, max_length=2)]
CountOf = Annotated[list[Count], Meta(min_length=2, max_length=2)]  # a number, and the total


class Grounds(TypedDict, total=False):
    """The evidence that an intervention helps, and what the evidence study measured."""

    grade: Required[Literal["measured", "literature", "untested"]]
    source: str
    finding: Annotated[str, about("the finding for which the study tried it")]
    saved: Annotated[float, about("share of all compute that stopping saved")]
    stopped_failing: Annotated[
        CountOf, about("failing runs that were stopped, and all failing runs")
    ]
    stopped_sound: Annotated[CountOf, about("sound runs that were stopped, and all sound runs")]
    recovered: Annotated[Count, about("restarts with the change that did not fail in the end")]
    recovered_control: Annotated[
        Count, about("restarts of the same runs and seeds without the change that did not fail")
    ]
    n: Annotated[Count, about("number of restarts")]
    runs: Annotated[Count, about("number of runs that were restarted")]
    difference: Annotated[float, about("difference of the two shares that recovered")]
    interval: Annotated[Interval, about("95% interval of the difference")]
    performance: Annotated[float, about("mean change of final performance; 1: the task's best")]
    performance_interval: Annotated[Interval, about("95% interval of the mean change")]
    collapsed: Annotated[Count, about("restarts with the change that ended collapsed")]
    collapsed_control: Annotated[Count, about("restarts without the change that ended collapsed")]
    literature: Annotated[str, about("a citation, in addition to what was measured")]


@dataclass(frozen=True, slots=True)
class Intervention:
    """A recommended change: why it applies here, how to check that it worked, and its evidence."""

    id: str
    title: str
    action: str
    findings: Annotated[tuple[str, ...], about("names of the findings that it addresses")]
    why: str
    key: ConfigKey
    check: Annotated[str, about("how to see that it worked")]
    evidence: Grounds
    conflicts: tuple[str, ...] = ()
    layers: tuple[Count, ...] = ()
    folded: Annotated[
        bool,
        about("whether it was measured without a gain; reports then name it in one line"),
        ADDED_LATER,
    ] = False
