"""Types and helpers that all rules share: the situation that a rule judges, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

from moegeo_cli.explanations.findings import Definition, definitions
from moegeo_cli.records import (
    Check,
    CheckpointRecord,
    Evidence,
    Finding,
    LayerRecord,
    Metric,
    RunRecord,
    Threshold,
)
from moegeo_cli.records.verdict import Severity
from moegeo_cli.verdict.thresholds import Limit, Thresholds
from moegeo_cli.verdict.training_log import FiguresSoFar, TrainingFigures

SEVERITIES: tuple[Severity, ...] = get_args(Severity)

MIN_SEQUENCES = 16  # with fewer sequences an interval is not reliable


@dataclass(frozen=True, slots=True)
class Situation:
    """The checkpoint that is judged, with all earlier ones.

    `losses` are differences of the loss to the reference's at the same progress, by checkpoint
    path; None without a reference. `figures` summarise the whole training log.
    """

    run: RunRecord
    history: tuple[CheckpointRecord, ...]  # oldest first; the last one is judged
    limits: Thresholds
    losses: Mapping[str, Metric] | None = None
    figures: TrainingFigures = field(default_factory=partial(TrainingFigures, ()))

    @property
    def logged(self) -> FiguresSoFar:
        """The training log up to this checkpoint."""
        return self.figures.until(self.now.step)

    @property
    def now(self) -> CheckpointRecord:
        """The checkpoint that is judged."""
        return self.history[-1]


@dataclass(frozen=True, slots=True)
class Found:
    """The outcome of a rule that holds: it becomes a finding."""

    severity: Severity
    message: str
    layers: tuple[int, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    threshold: Threshold | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """The outcome of a rule that could not be tried, with the reason.

    `undecided` makes the verdict on routing inconclusive.
    """

    reason: str
    undecided: bool = False


Outcome = Found | Skipped | None
Rule = Callable[[Situation], Outcome]


def to_finding_and_check(
    name: str, outcome: Outcome, limits: Thresholds, steps: tuple[int, ...]
) -> tuple[Finding | None, Check]:
    """Turn the outcome of a rule into entries of a verdict.

    Args:
        name: name of the finding.
        outcome: the outcome of its rule; None if the rule does not hold.
        limits: the limits. A finding with an uncalibrated limit is at most a watch.
        steps: the step of the judged checkpoint; empty if unknown.

    Returns:
        The finding (None unless the rule holds), and the check.
    """
    about = definitions()[name]
    if isinstance(outcome, Skipped):
        return None, Check(about.id, name, about.axis, "skipped", outcome.reason)
    if outcome is None:
        return None, Check(about.id, name, about.axis, "passed")
    finding = Finding(
        about.id, name, _allowed(outcome.severity, about, limits), about.axis, outcome.message,
        tuple(sorted(set(outcome.layers))), outcome.evidence, outcome.threshold, "active", steps,
    )  # fmt: skip
    return finding, Check(about.id, name, about.axis, "found")


def _allowed(severity: Severity, about: Definition, limits: Thresholds) -> Severity:
    """The severity, lowered to watch if the limit is uncalibrated and the finding is no fact."""
    ceiling = about.severity
    limit = limits.get(about.name)
    exact = about.fact
    if severity == "failing" and not exact and (limit is None or not limit.calibrated):
        ceiling = "watch"
    return min(severity, ceiling, key=SEVERITIES.index)


def uncalibrated_severity(limit: Limit) -> Severity:
    """Severity of a rule whose error rates were never measured: info; watch by a user's limit."""
    return "watch" if limit.own else "info"


def worst(severities: Sequence[Severity]) -> Severity:
    """The worst of some severities."""
    return max(severities, key=SEVERITIES.index)


def is_early(situation: Situation) -> bool:
    """Whether the checkpoint is in the first fifth of training; False if progress is unknown."""
    fraction = situation.now.progress.get("fraction")
    return fraction is not None and fraction <= situation.limits["router-collapse-from"].value


def evidence(name: str, layer: LayerRecord) -> Evidence:
    """A router's metric, as evidence."""
    return Evidence(name, layer.metrics[name], layer.layer, layer.router)


def lower_bound(metric: Metric | None) -> float:
    """Lower end of the interval, or the value without one; minus infinity without a value."""
    if metric is None or metric.value is None:
        return float("-inf")
    return metric.value if metric.ci_low is None else metric.ci_low


def known(layer: LayerRecord, name: str) -> Metric | None:
    """A router's metric; None if it is missing or has no value."""
    metric = layer.metrics.get(name)
    return metric if metric is not None and metric.value is not None else None


def layer_words(layers: Sequence[int]) -> str:
    """Layers in words: "layer 3", "layers 1, 2 and 5"."""
    names = [str(n) for n in sorted(set(layers))]
    if len(names) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"
