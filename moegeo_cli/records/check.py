"""The record of `moegeo check`: what it found in the files, without a forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from moegeo_cli.records.facts import RunFacts, Step
from moegeo_cli.records.fields import Count, Values, about
from moegeo_cli.records.metric import Coverage, Metrics
from moegeo_cli.records.showing import Displayable
from moegeo_cli.records.verdict import Intervention, Verdict


@dataclass(frozen=True, slots=True)
class CheckedLayer:
    """One router and its experts, read from the files. Arrays by expert have length E."""

    layer: Annotated[Count | None, about("index of the decoder layer; null if no name tells it")]
    router: Annotated[str, about("module path on disk")]
    experts: Annotated[int, Meta(ge=1)]
    top_k: Count | None
    metrics: Metrics
    router_digest: Annotated[
        str, about("hash of the stored bytes of the router's weight and logit bias")
    ]
    bias_digest: Annotated[
        str | None, about("hash of the stored bytes of the selection bias; null without one")
    ] = None
    row_norms: Annotated[
        Values | None, about("by expert; null where the values could not be read")
    ] = None
    selection_bias: Annotated[
        Values | None, about("by expert; an entry is null where it is not finite")
    ] = None
    expert_norms: Annotated[Values | None, about("by expert; null where experts were not read")] = (
        None
    )
    masked: Annotated[tuple[Count, ...], about("experts that a row or a bias switches off")] = ()
    identical: Annotated[
        tuple[tuple[Count, ...], ...], about("groups of experts with equal weights")
    ] = ()
    reasons: Annotated[Mapping[str, str], about("what is not there, and why")] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True)
class CheckedCheckpoint:
    """One checkpoint."""

    step: Step
    path: Annotated[str, about("relative to the run")]
    fingerprint: str
    coverage: Annotated[Coverage, about("routers whose values could be read")]
    metrics: Annotated[Metrics, about("over all routers")]
    layers: tuple[CheckedLayer, ...]
    verdict: Verdict | None = None
    bytes_read: Annotated[Count, about("bytes of its weight files that were read")] = 0
    scheme: Annotated[tuple[str, ...], about("forms of quantisation")] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class CheckRecord(Displayable):
    """What `moegeo check --format json` prints."""

    status: Annotated[
        Literal["complete", "partial"],
        about("partial where a checkpoint was left out or a router could not be read"),
    ]
    versions: Mapping[str, str]
    run: RunFacts
    settings: Annotated[Mapping[str, Any], about("quick: only routers, biases and norms were read")]
    checkpoints: tuple[CheckedCheckpoint, ...]
    verdict: Verdict | None = None
    interventions: tuple[Intervention, ...] = ()

    @property
    def newest(self) -> CheckedCheckpoint:
        """The newest checkpoint, by which the run is judged."""
        return self.checkpoints[-1]
