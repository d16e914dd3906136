"""The catalogue of metrics: from metrics.toml, and from metric modules with their own `METRIC`.

`higher_is_better` is None for descriptive metrics. For example, the specialization index is neither
good nor bad by itself.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.registry import load, router_metrics

FILE = Path(__file__).with_name("metrics.toml")


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """The description of a metric; the head of `metrics.toml` explains each field."""

    name: str
    meaning: str = ""
    unit: str = ""
    label: str = ""
    why: str = ""
    definition: str = ""
    range: str = ""
    higher_is_better: bool | None = None
    over_routers: str = "mean"
    worst: str | None = None
    decimals: int = 3
    null: str = ""
    invariant: str = ""
    page: str = "metrics"


@functools.cache
def _written() -> Mapping[str, MetricSpec]:
    rows = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: MetricSpec(name, **row) for name, row in rows.items()}


def added_metrics() -> tuple[str, ...]:
    """Names of metrics that are not in metrics.toml: their modules describe them in `METRIC`."""
    return tuple(sorted(set(router_metrics()) - set(_written())))


@functools.cache
def all_metrics() -> Mapping[str, MetricSpec]:
    """Every metric by name, including those that only some reports or reference tables use."""
    places = router_metrics()
    return {**_written(), **{name: load(f"{places[name]}:METRIC") for name in added_metrics()}}


@functools.cache
def specs() -> Mapping[str, MetricSpec]:
    """The metrics with a label, by name: those in records of runs, checks and comparisons."""
    return {name: found for name, found in all_metrics().items() if found.label}
