"""Two runs side by side: the JSON payload of `moegeo compare`. Differences are b minus a."""

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
    """One side: its name and the status words of its verdict."""

    name: str
    status: Health | None
    routing: Health | None
    performance: Performance | None
    model_type: str | None = None
    checkpoints: Count | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A metric of both runs."""

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
    """A layer of two checkpoints, bit for bit."""

    layer: Count | None
    router: str
    router_equal: bool
    bias_equal: Annotated[bool | None, about("of the selection bias; null where one has none")]
    experts: Annotated[tuple[Count, ...], about("those that are equal")]
    experts_of: Annotated[Count, about("those that were read in both")]


@dataclass(frozen=True, slots=True)
class SharedBytes:
    """Which tensors of two checkpoints are equal bit for bit, by their stored bytes.

    Counts of routers, experts, and tensors of attention and of everything else, each `_of` those
    that both have by name.
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
    """Two checkpoints at the same progress, within the tolerance; nothing is interpolated.

    Matched by "newest", they are the newest of each run, and progress is null.
    """

    progress_a: float | None
    progress_b: float | None
    step_a: Step
    step_b: Step
    differences: Differences
    layers: tuple[LayerPair, ...] = ()
    shared: Annotated[
        SharedBytes | None, about("what they have in common; null where nobody looked"), ADDED_LATER
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
    """What `moegeo compare --format json` prints. Differences are b minus a."""

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
