"""Tidy CSV: one row per step, router and metric. Run-level rows have no layer or router."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from moegeo_cli.records import LayerRecord, Metric, RunRecord
from moegeo_cli.records.check import CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord, Difference
from moegeo_cli.records.facts import Move
from moegeo_cli.reports.escaping import csv_text

COLUMNS = (
    "step", "checkpoint", "layer", "router", "metric", "value", "ci_low", "ci_high", "n", "unit",
    "null_value", "reason", "worst_router",
)  # fmt: skip
COMPARE_COLUMNS = (
    "step_a", "step_b", "layer", "router", "metric", "a", "b", "difference", "ci_low", "ci_high",
    "n", "unit", "reason",
)  # fmt: skip


def render(record: RunRecord) -> str:
    """The metrics of a run; a metric that could not be measured has no value but a reason."""
    return _write(COLUMNS, rows(record))


def render_comparison(record: ComparisonRecord) -> str:
    """The metrics of both runs at each matched pair, and their difference, b minus a."""
    return _write(COMPARE_COLUMNS, _pairs(record))


def render_check(record: CheckRecord) -> str:
    """The metrics of a check: one row per checkpoint, router and metric."""
    return _write(COLUMNS, _check_rows(record))


def _check_rows(record: CheckRecord) -> Iterator[dict[str, Any]]:
    for checkpoint in record.checkpoints:
        place = {"step": checkpoint.step, "checkpoint": checkpoint.path}
        for name, metric in checkpoint.metrics.items():
            yield {**place, "metric": name, **_cells(metric)}
        for layer in checkpoint.layers:
            where = {**place, "layer": layer.layer, "router": layer.router}
            for name, metric in layer.metrics.items():
                yield {**where, "metric": name, **_cells(metric)}


def rows(record: RunRecord) -> Iterator[dict[str, Any]]:
    """One row per metric: checkpoints in order, then moves, at the step where they end."""
    for checkpoint in record.checkpoints:
        place = {"step": checkpoint.step, "checkpoint": checkpoint.path}
        for name, metric in {"loss": checkpoint.loss, **checkpoint.metrics}.items():
            yield {**place, "metric": name, **_cells(metric)}
        for layer in checkpoint.layers:
            where = {**place, "layer": layer.layer, "router": layer.router}
            for name, metric in layer_metrics(layer):
                yield {**where, "metric": name, **_cells(metric)}
    for move in record.dynamics:
        yield from _moves(move)


def layer_metrics(layer: LayerRecord) -> Iterator[tuple[str, Metric]]:
    """A router's metrics; those of other Fisher kinds are named `fisher.<kind>.<unit>.<name>`."""
    yield from layer.metrics.items()
    for kind, units in layer.fisher.items():
        for unit, metrics in units.items():
            for name, metric in metrics.items():
                yield f"fisher.{kind}.{unit}.{name}", metric


def _moves(move: Move) -> Iterator[dict[str, Any]]:
    place: dict[str, Any] = {"step": move["to_step"], "layer": None, "router": None}
    for name, metric in move["metrics"].items():
        yield {**place, "metric": f"dynamics.{name}", **_cells(metric)}
    for row in move["layers"]:
        place = {**place, "layer": row["layer"], "router": row["router"]}
        for name, metric in row["metrics"].items():
            yield {**place, "metric": f"dynamics.{name}", **_cells(metric)}


def _cells(metric: Metric) -> dict[str, Any]:
    return {
        "value": metric.value, "ci_low": metric.ci_low, "ci_high": metric.ci_high, "n": metric.n,
        "unit": metric.unit, "null_value": metric.null_value, "reason": metric.reason,
        "worst_router": metric.router,
    }  # fmt: skip


def _pairs(record: ComparisonRecord) -> Iterator[dict[str, Any]]:
    for pair in record.pairs:
        place = {"step_a": pair.step_a, "step_b": pair.step_b}
        for name, found in pair.differences.items():
            yield {**place, "metric": name, **_difference(found)}
        for layer in pair.layers:
            where = {**place, "layer": layer.layer, "router": layer.router}
            for name, found in layer.differences.items():
                yield {**where, "metric": name, **_difference(found)}


def _difference(found: Difference) -> dict[str, Any]:
    cells = _cells(found.difference)
    return {
        "a": found.a.value, "b": found.b.value, "difference": cells.pop("value"),
        **{k: v for k, v in cells.items() if k in COMPARE_COLUMNS},
    }  # fmt: skip


def _write(columns: tuple[str, ...], found: Iterator[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in found:
        writer.writerow({k: csv_text(v) if isinstance(v, str) else v for k, v in row.items()})
    return file.getvalue()
