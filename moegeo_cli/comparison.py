"""Two runs side by side, as frozen records: the JSON payload of `moegeo compare`.

Read back with `records.from_dict`. Differences are b minus a, paired by probe sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.records import Metric

FORMAT_NAME = "moegeo.compare"
# 1: first version.
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One side of a comparison: its name and the status words of its verdict."""

    name: str
    status: str | None
    routing: str | None
    performance: str | None
    model_type: str | None = None
    checkpoints: int | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of both runs and `difference`, b minus a, with its paired interval."""

    a: Metric
    b: Metric
    difference: Metric


@dataclass(frozen=True, slots=True)
class LayerPair:
    """The same router in both runs."""

    layer: int
    router: str
    differences: Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class MatchedPair:
    """Two checkpoints at the same progress, within the tolerance; nothing is interpolated."""

    progress_a: float
    progress_b: float
    step_a: int | None
    step_b: int | None
    differences: Mapping[str, Difference]
    layers: tuple[LayerPair, ...] = ()


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A checkpoint of one run ("a" or "b") without a partner in the other."""

    run: str
    step: int | None
    progress: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class ComparisonRecord:
    """Two runs compared.

    `matched_by` is "tokens", "step" or "fraction". `healthier` is "a", "b" or None, which
    means that no difference was shown; `reason` says what decided.
    """

    versions: Mapping[str, str]
    run_a: RunSummary
    run_b: RunSummary
    matched_by: str
    pairs: tuple[MatchedPair, ...]
    healthier: str | None
    reason: str
    unmatched: tuple[Unmatched, ...] = ()
    notes: tuple[str, ...] = ()
    probe: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
