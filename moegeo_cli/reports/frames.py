"""Records as tidy pandas frames, for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from moegeo_cli.errors import UsageError
from moegeo_cli.records import LayerRecord, Metric, RunRecord
from moegeo_cli.records.formats import AnyRecord
from moegeo_cli.reports.csv_report import layer_metrics
from moegeo_cli.reports.tables import tables

if TYPE_CHECKING:
    import pandas as pd

_METRIC = ("metric", "value", "ci_low", "ci_high", "n", "unit", "null_value", "reason")
_ROUTER = ("step", "checkpoint", "layer", "router")
COLUMNS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("step", "checkpoint", *_METRIC, "worst_router"),
    "layers": (*_ROUTER, *_METRIC),
    "experts": (*_ROUTER, "expert", "load", "mean_probability", "fisher_trace", "dead"),
    "domains": (*_ROUTER, "domain", "expert", "load"),
    "findings": (
        "id", "name", "severity", "axis", "state", "layers", "steps", "message", "threshold",
        "threshold_source",
    ),
    "interventions": (
        "id", "title", "findings", "layers", "framework", "key", "current", "suggested", "live",
        "grade", "action", "why", "check",
    ),
}  # fmt: skip


def to_frames(record: AnyRecord) -> dict[str, pd.DataFrame]:
    """Any record as pandas frames, by name.

    Every record has the frame `metrics`, with one row per metric, and a frame for each of its
    lists. A run has the frames checkpoints, layers, experts, domains, findings and interventions:
    checkpoints and layers with one row per metric, experts with one row per expert, domains with
    one row per domain and expert. The column `checkpoint` is the path in the run, for checkpoints
    without a step.
    """
    import pandas as pd

    found = tables(record)
    if not isinstance(record, RunRecord):
        return {name: pd.DataFrame(rows) for name, rows in found.items()}
    own = {
        "checkpoints": _checkpoints(record),
        "layers": _layers(record),
        "experts": _experts(record),
        "domains": _domains(record),
        "findings": _findings(record),
        "interventions": _interventions(record),
    }
    return {
        "metrics": pd.DataFrame(found.get("metrics", [])),
        **{n: pd.DataFrame(list(rows), columns=list(COLUMNS[n])) for n, rows in own.items()},
    }


def to_frame(record: AnyRecord, table: str) -> pd.DataFrame:
    """One frame of a record.

    Raises:
        UsageError: the record has no frame of this name.
    """
    found = to_frames(record)
    if table not in found:
        raise UsageError(f"this record has no table {table!r}", found=", ".join(found))
    return found[table]


def _checkpoints(record: RunRecord) -> Iterator[dict[str, Any]]:
    for checkpoint in record.checkpoints:
        for name, metric in {"loss": checkpoint.loss, **checkpoint.metrics}.items():
            yield {
                "step": checkpoint.step, "checkpoint": checkpoint.path, **_cells(name, metric),
                "worst_router": metric.router,
            }  # fmt: skip


def _routers(record: RunRecord) -> Iterator[tuple[dict[str, Any], LayerRecord]]:
    for checkpoint in record.checkpoints:
        for layer in checkpoint.layers:
            place = (checkpoint.step, checkpoint.path, layer.layer, layer.router)
            yield dict(zip(_ROUTER, place, strict=True)), layer


def _layers(record: RunRecord) -> Iterator[dict[str, Any]]:
    for place, layer in _routers(record):
        for name, metric in layer_metrics(layer):
            yield {**place, **_cells(name, metric)}


def _experts(record: RunRecord) -> Iterator[dict[str, Any]]:
    for place, layer in _routers(record):
        for expert in range(layer.experts):
            yield {
                **place,
                "expert": expert,
                "load": _entry_at(layer.load, expert),
                "mean_probability": _entry_at(layer.mean_probability, expert),
                "fisher_trace": _entry_at(layer.fisher_trace, expert),
                "dead": expert in layer.dead,
            }


def _domains(record: RunRecord) -> Iterator[dict[str, Any]]:
    for place, layer in _routers(record):
        for domain, load in layer.domain_load.items():
            for expert, share in enumerate(load):
                yield {**place, "domain": domain, "expert": expert, "load": share}


def _findings(record: RunRecord) -> Iterator[dict[str, Any]]:
    for f in record.verdict.findings if record.verdict else ():
        row = {name: getattr(f, name) for name in COLUMNS["findings"][:8]}
        limit = f.threshold
        yield {
            **row,
            "threshold": limit.value if limit else None,
            "threshold_source": limit.source if limit else None,
        }


def _interventions(record: RunRecord) -> Iterator[dict[str, Any]]:
    for i in record.interventions:
        row = {
            n: getattr(i, n)
            for n in ("id", "title", "findings", "layers", "action", "why", "check")
        }
        key = {n: getattr(i.key, n) for n in ("framework", "key", "current", "suggested", "live")}
        yield {**row, **key, "grade": i.evidence.get("grade")}


def _cells(name: str, metric: Metric) -> dict[str, Any]:
    return {"metric": name, **{n: getattr(metric, n) for n in _METRIC[1:]}}


def _entry_at(values: Sequence[float | None] | None, place: int) -> float | None:
    return values[place] if values is not None else None
