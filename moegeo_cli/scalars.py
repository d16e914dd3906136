"""The scalars of a checkpoint that a dashboard shows: at most 30, whatever the model's size.

Each scalar is a value over all routers. There are none for single routers or experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import CheckpointRecord, RunRecord
from moegeo_cli.records.facts import Move

PREFIX = "moegeo/"
MAX_SCALARS = 30
STATUS = {"healthy": 0.0, "watch": 1.0, "failing": 2.0}
METRICS = (
    "fsi", "information", "dispersion", "collapse", "collapse_worst", "effective_experts",
    "effective_experts_worst", "entropy_load", "max_violation", "max_violation_worst",
    "dead_experts", "margin", "near_ties", "logit_max", "logit_max_worst", "logit_z",
    "router_cosine", "bias_spread", "heterogeneity_relative", "heterogeneity_trace", "fhs",
    "fhs_trace",
)  # fmt: skip
MOVES = ("speed",)  # since the checkpoint before
# Every point has this scalar and sinks write it last, so its presence means a complete point.
LAST = f"{PREFIX}findings_failing"
OWN = {
    "verdict": "0 healthy, 1 watch, 2 failing; absent where inconclusive",
    "routing": "the verdict on routing: 0 healthy, 1 watch, 2 failing",
    "performance": "the verdict on performance: 0 healthy, 1 watch, 2 failing",
    "findings_watch": "active findings of severity watch",
    "findings_failing": "active findings of severity failing",
}


@dataclass(frozen=True, slots=True)
class Point:
    """One checkpoint's scalars.

    Attributes:
        step: the checkpoint's training step.
        values: value by name, such as `moegeo/loss`; scalars without a value are left out.
    """

    step: int
    values: Mapping[str, float]


def points_of(run: RunRecord) -> list[Point]:
    """The scalars of each checkpoint of a judged run, oldest first.

    Checkpoints without a step are left out.
    """
    moves = {move["to_path"]: move for move in run.dynamics}
    return [
        Point(c.step, {f"{PREFIX}{name}": value for name, value in _values(c, moves.get(c.path))})
        for c in run.checkpoints
        if c.step is not None
    ]


def describe(name: str) -> str:
    """The meaning of a scalar, in one line.

    Args:
        name: the scalar's name with its prefix.
    """
    own = name.removeprefix(PREFIX)
    if own in OWN:
        return OWN[own]
    spec = specs()[own.removesuffix("_worst")]
    worst = ", at the worst router" if own.endswith("_worst") else ""
    return f"{spec.meaning}{worst} ({spec.unit})"


def _values(checkpoint: CheckpointRecord, move: Move | None) -> Iterator[tuple[str, float]]:
    measured = {"loss": checkpoint.loss, **{n: checkpoint.metrics.get(n) for n in METRICS}}
    if move is not None:
        measured.update({name: move["metrics"].get(name) for name in MOVES})
    for name, metric in measured.items():
        if metric is not None and metric.value is not None and math.isfinite(metric.value):
            yield name, float(metric.value)
    verdict = checkpoint.verdict
    if verdict is not None:
        for name in ("status", "routing", "performance"):
            value = STATUS.get(getattr(verdict, name))
            if value is not None:
                yield "verdict" if name == "status" else name, value
    findings = () if verdict is None else verdict.findings
    for severity in ("watch", "failing"):
        active = [f for f in findings if f.severity == severity and f.state == "active"]
        yield f"findings_{severity}", float(len(active))
