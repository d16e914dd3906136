"""The record of `moegeo compare`: two runs side by side. Differences are b minus a."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from moegeo_cli.records.facts import ProbeFacts, Step
from moegeo_cli.records.fields import ADDED_LATER, Count, about
from moegeo_cli.records.metric import Metric
from moegeo_cli.records.showing import Displayable
from moegeo_cli.records.verdict import Health, Performance

Side = Literal["a", "b"]
ProgressAxis = Literal["tokens", "step", "fraction", "newest"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One of the two runs: its name and the status of its verdict."""

    name: str
    status: Health | None
    routing: Health | None
    performance: Performance | None
    model_type: str | None = None
    checkpoints: Count | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of both runs, and its difference."""

    a: Metric
    b: Metric
    difference: Annotated[Metric, about("b minus a, paired by probe sequence")]


Differences = Mapping[str, Difference]


@dataclass(frozen=True, slots=True)
class LayerPair:
    """The same router in both runs."""

    layer: Count
    router: str
    differences: Differences


@dataclass(frozen=True, slots=True)
class SharedLayer:
    """What is equal, bit for bit, in a layer of two checkpoints."""

    layer: Count | None
    router: str
    router_equal: bool
    bias_equal: Annotated[
        bool | None, about("whether the selection bias is equal; null if one side has none")
    ]
    experts: Annotated[tuple[Count, ...], about("experts that are equal")]
    experts_of: Annotated[Count, about("number of experts that were read in both")]


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Which tensors of two checkpoints are equal bit for bit, by their stored bytes.

    Each field is a number of equal routers, experts, attention tensors or other tensors; its `_of`
    partner is the number of those that both checkpoints have by name.
    """

    routers: Count
    routers_of: Count
    experts: Count
    experts_of: Count
    attention: Count
    attention_of: Count
    others: Count
    others_of: Count
    layers: tuple[SharedLayer, ...] = ()


@dataclass(frozen=True, slots=True)
class MatchedPair:
    """Two checkpoints at the same progress, within a tolerance; nothing is interpolated.

    If the runs are matched by "newest", they are the newest of each run, and progress is null.
    """

    progress_a: float | None
    progress_b: float | None
    step_a: Step
    step_b: Step
    differences: Differences
    layers: tuple[LayerPair, ...] = ()
    shared: Annotated[
        SharedBytes | None, about("what they have in common; null: not looked at"), ADDED_LATER
    ] = None


@dataclass(frozen=True, slots=True)
class Unmatched:
    """A checkpoint of one run without a partner in the other."""

    run: Side
    step: Step
    progress: float | None
    reason: str


@dataclass(frozen=True, slots=True, repr=False)
class ComparisonRecord(Displayable):
    """The JSON output of `moegeo compare --format json`. Differences are b minus a."""

    versions: Mapping[str, str]
    run_a: RunSummary
    run_b: RunSummary
    matched_by: ProgressAxis
    pairs: tuple[MatchedPair, ...]
    healthier: Annotated[Side | None, about("null: no difference was shown")]
    reason: Annotated[str, about("what decided")]
    unmatched: tuple[Unmatched, ...] = ()
    notes: tuple[str, ...] = ()
    probe: ProbeFacts = field(default_factory=ProbeFacts)
    settings: Mapping[str, Any] = field(default_factory=dict)
