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
class SharedLayer:
    """A layer of two checkpoints, bit for bit.

    `bias_equal` is of the selection bias, null where one has none. `experts` are those that are
    equal, of `experts_of` that were read in both.
    """

    layer: int | None
    router: str
    router_equal: bool
    bias_equal: bool | None
    experts: tuple[int, ...]
    experts_of: int


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Which tensors of two checkpoints are equal bit for bit, by their stored bytes.

    Counts of routers, experts, and tensors of attention and of everything else, each `_of` those
    that both have by name.
    """

    routers: int
    routers_of: int
    experts: int
    experts_of: int
    attention: int
    attention_of: int
    others: int
    others_of: int
    layers: tuple[SharedLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class MatchedPair:
    """Two checkpoints at the same progress, within the tolerance; nothing is interpolated.

    `shared` says which tensors they have in common bit for bit; null where nobody looked.
    """

    progress_a: float
    progress_b: float
    step_a: int | None
    step_b: int | None
    differences: Mapping[str, Difference]
    layers: tuple[LayerPair, ...] = ()
    shared: SharedBytes | None = None


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
