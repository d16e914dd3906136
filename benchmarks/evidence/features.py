"""The features of a run at a decision: moegeo's metrics, and what a practitioner can see.

The run's folder is rebuilt with nothing later than the decision in it, and the product's own
`analyze` reads that: no feature can see past it. Names are `metric` of the newest checkpoint,
`metric.slope` its change since the checkpoint before a decision over the step's logarithm,
`fisher.KIND.UNIT.metric`, `dynamics.metric` between the last two checkpoints, and `log.*`.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.evidence.models import ROUTERS_OF_DIGITS
from benchmarks.evidence.tasks import Task
from moegeo_cli import analyze
from moegeo_cli.records import RunRecord
from sample_checkpoints import digits

# Extra Fishers, at one decision alone: the exact unit costs a backward per loss token.
EXTRA_AT = 0.1
EXACT_TOKENS, SEQUENCE_TOKENS = 256, 8192
PROBE_SIZES = (512, 1024, 2048, 4096, 8192)  # beside the default, for the smallest that agrees
FISHER = ("heterogeneity", "heterogeneity_relative", "heterogeneity_trace",
          "heterogeneity_conditional", "fhs", "fhs_worst", "fhs_relative", "fhs_relative_worst",
          "fhs_trace", "fhs_trace_worst", "fhs_conditional", "fhs_conditional_worst")  # fmt: skip


def cut_run(run: Path, step: int, into: Path) -> Path:
    """A run's folder with its checkpoints up to a step, as links."""
    into.mkdir(parents=True)
    for folder in run.glob("checkpoint-*"):
        if int(folder.name.rsplit("-", 1)[1]) <= step:
            (into / folder.name).symlink_to(folder, target_is_directory=True)
    return into


def analyze_run(
    folder: Path, task: Task, probe: Path, cache: Path | None, **options: Any
) -> RunRecord:
    """The product's analysis of a run of the study, at its defaults."""
    own = {"model": digits.build, "router": ROUTERS_OF_DIGITS} if task.images else {}
    return analyze(folder, probe=probe, cache=cache is not None, cache_dir=cache, **own, **options)


def extract(record: RunRecord) -> dict[str, float]:
    """Numbers of the newest checkpoint of a record; what is null is left out."""
    newest = record.newest
    found: dict[str, float] = {}
    for name, metric in newest.metrics.items():
        _put(found, name, metric.value)
        if metric.null_value is not None and metric.value is not None:
            _put(found, f"{name}.excess", metric.value - metric.null_value)
    _put(found, "probe_loss", newest.loss.value)
    for kind, units in newest.fisher.items():
        for unit, metrics in units.items():
            for name in FISHER:
                if name in metrics:
                    _put(found, f"fisher.{kind}.{unit}.{name}", metrics[name].value)
    if record.dynamics:
        for name, metric in record.dynamics[-1]["metrics"].items():
            _put(found, f"dynamics.{name}", metric.value)
    if len(record.checkpoints) > 2:  # the start is no earlier decision
        before = record.checkpoints[-2]
        assert newest.step
        assert before.step
        apart = math.log(newest.step / before.step)
        for name, metric in newest.metrics.items():
            old = before.metrics.get(name)
            if metric.value is not None and old is not None and old.value is not None:
                _put(found, f"{name}.slope", (metric.value - old.value) / apart)
    return found


def extract_fisher(record: RunRecord) -> dict[str, float]:
    """The Fisher numbers alone, of the kind and unit that the record was asked for."""
    asked = record.settings["fisher"]
    kind, unit = asked["kind"], asked["unit"]
    found: dict[str, float] = {}
    for name in FISHER:
        metric = record.newest.metrics.get(name)
        if metric is not None:
            _put(found, f"fisher.{kind}.{unit}.{name}", metric.value)
    return found


def verdict_of(record: RunRecord) -> dict[str, Any]:
    """The verdict and its findings, by severity."""
    assert record.verdict is not None
    active = [f for f in record.verdict.findings if f.state == "active"]
    return {
        "status": record.verdict.status,
        "routing": record.verdict.routing,
        "performance": record.verdict.performance,
        "findings": {f.name: f.severity for f in active},
    }


def practitioner(run: Path, step: int) -> dict[str, float]:
    """What the training log up to a step says: losses, norms, load, and where they are heading."""
    log = _log_at(run, step)
    found: dict[str, float] = {}
    losses = [(e["step"], e["loss"]) for e in log if _number(e.get("loss"))]
    if not losses:
        return found
    recent = losses[-6:]
    found["log.training_loss"] = statistics.fmean(v for _, v in recent)
    if len(losses) >= 4:
        half = losses[len(losses) // 2 :]
        found["log.loss_slope"] = slope([(math.log(s), v) for s, v in half])
        found["log.loss_extrapolated"] = found["log.training_loss"] + found["log.loss_slope"] * (
            math.log(_planned(run, step)) - math.log(half[-1][0])
        )
    for key in ("grad_norm", "load_cv", "router_z"):
        values = [e[key] for e in log if _number(e.get(key))][-6:]
        if values:
            found[f"log.{key}"] = statistics.fmean(values)
    norms = [e["grad_norm"] for e in log if _number(e.get("grad_norm"))]
    if norms:
        found["log.grad_norm_max"] = max(norms)
    if len(losses) > 10:
        rises = [
            losses[i][1] / statistics.median(v for _, v in losses[max(0, i - 10) : i]) - 1
            for i in range(5, len(losses))
        ]
        found["log.loss_rise_max"] = max(rises)
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line of least squares; 0 for one point."""
    mean_x = statistics.fmean(x for x, _ in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * y for x, y in points) / spread if spread else 0.0


def _log_at(run: Path, step: int) -> list[Mapping[str, Any]]:
    state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    log: list[Mapping[str, Any]] = state["log_history"]
    return log


def _planned(run: Path, step: int) -> int:
    state = json.loads((run / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return int(state["max_steps"])


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _put(found: dict[str, float], name: str, value: float | None) -> None:
    if value is not None:
        found[name] = float(value)
