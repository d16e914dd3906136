"""What rules share: the situation that they judge, and their outcomes."""

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

MIN_SEQUENCES = 16  # under so many, an interval says little


@dataclass(frozen=True, slots=True)
class Situation:
    """A checkpoint with all earlier ones.

    `losses` are loss differences to the reference at the same progress, by checkpoint path;
    None without a reference. `figures` are of the whole training log.
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
    """A rule that holds."""

    severity: Severity
    message: str
    layers: tuple[int, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    threshold: Threshold | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A rule that could not be decided, with the reason.

    `undecided` makes its axis inconclusive.
    """

    reason: str
    undecided: bool = False


Outcome = Found | Skipped | None
Rule = Callable[[Situation], Outcome]


def to_finding_and_check(
    name: str, outcome: Outcome, limits: Thresholds, steps: tuple[int, ...]
) -> tuple[Finding | None, Check]:
    """The check, and the finding if the rule holds, that an outcome adds to a verdict.

    Args:
        name: of the finding.
        outcome: of its rule.
        limits: an uncalibrated one makes nothing failing.
        steps: of the checkpoint that was judged.
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
    """The severity that is allowed: with an uncalibrated limit, only exact facts may be failing."""
    ceiling = about.severity
    limit = limits.get(about.name)
    exact = about.fact
    if severity == "failing" and not exact and (limit is None or not limit.calibrated):
        ceiling = "watch"
    return min(severity, ceiling, key=SEVERITIES.index)


def unrated(limit: Limit) -> Severity:
    """Severity of a rule whose rates were never measured: info, or watch by the user's limit."""
    return "watch" if limit.own else "info"


def worst(severities: Sequence[Severity]) -> Severity:
    """The worst of some severities."""
    return max(severities, key=SEVERITIES.index)


def is_early(situation: Situation) -> bool:
    """Whether the checkpoint lies in the first fifth of training, as far as that is known."""
    fraction = situation.now.progress.get("fraction")
    return fraction is not None and fraction <= situation.limits["router-collapse-from"].value


def evidence(name: str, layer: LayerRecord) -> Evidence:
    """A router's metric, as evidence."""
    return Evidence(name, layer.metrics[name], layer.layer, layer.router)


def low(metric: Metric | None) -> float:
    """Lower end of the interval; never over a limit without a value."""
    if metric is None or metric.value is None:
        return float("-inf")
    return metric.value if metric.ci_low is None else metric.ci_low


def known(layer: LayerRecord, name: str) -> Metric | None:
    """A router's metric where it has a value."""
    metric = layer.metrics.get(name)
    return metric if metric is not None and metric.value is not None else None


def layer_words(layers: Sequence[int]) -> str:
    """Layers in words: "layer 3", "layers 1, 2 and 5"."""
    names = [str(n) for n in sorted(set(layers))]
    if len(names) == 1:
        return f"layer {names[0]}"
    return f"layers {', '.join(names[:-1])} and {names[-1]}"
