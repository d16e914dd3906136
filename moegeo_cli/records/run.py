"""The record of `moegeo analyze`: a run with its measured checkpoints and its verdict.

Legend: E routed experts, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from moegeo_cli.records.facts import (
    BaselineFacts,
    Move,
    ProbeFacts,
    ReplayFacts,
    RunFacts,
    Step,
)
from moegeo_cli.records.fields import ADDED_LATER, Count, Share, Values, about
from moegeo_cli.records.metric import Coverage, Metric, Metrics
from moegeo_cli.records.showing import Displayable
from moegeo_cli.records.verdict import Intervention, Verdict

Completeness = Annotated[
    Literal["complete", "partial"], about("partial: a checkpoint or a router was left out")
]
Fisher = Annotated[
    Mapping[str, Mapping[str, Metrics]],
    about("heterogeneity by Fisher kind, then by sample unit, then by metric name"),
]
Experts = tuple[Count, ...]
SUSPECT = 0.05  # of the fair share, as the test of dead experts has it
RouterState = Literal["ok", "nonfinite", "zero"]


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One router of one checkpoint."""

    layer: Annotated[Count, about("index of the decoder layer")]
    router: Annotated[str, about("module path")]
    experts: Annotated[Count, about("E, routed experts")]
    top_k: Annotated[Count | None, about("K, experts chosen per token; null where it varies")]
    scoring: Annotated[str, about("how logits become scores")]
    metrics: Metrics
    load: Annotated[
        tuple[Share | None, ...] | None, about("length E; shares of dispatch, which sum to 1")
    ] = None
    mean_probability: Annotated[Values | None, about("length E")] = None
    fisher_trace: Annotated[
        Values | None, about("length E; null for an expert without a Fisher")
    ] = None
    fisher: Fisher = field(default_factory=dict)
    dead: Annotated[Experts, about("experts significantly below the load limit")] = ()
    dead_in_all_domains: Annotated[
        Experts | None,
        about(
            "experts that are dead in every domain with enough tokens for the test; null if no "
            "domain has enough"
        ),
    ] = None
    domain_load: Annotated[Mapping[str, tuple[Share, ...]], about("load by probe domain")] = field(
        default_factory=dict
    )
    state: Annotated[
        RouterState,
        about("nonfinite: NaN or infinity in the router; zero: all of its rows are zero"),
    ] = "ok"
    zero_rows: Annotated[
        Experts, about("experts whose row of the router is zero"), ADDED_LATER
    ] = ()
    experts_nonfinite: Annotated[
        Experts | None,
        about("experts with NaN or infinite weights; null: not looked at"),
        ADDED_LATER,
    ] = None
    experts_zero: Annotated[
        Experts | None,
        about("experts with weights that are zero; null: not looked at"),
        ADDED_LATER,
    ] = None
    experts_identical: Annotated[
        tuple[Experts, ...] | None,
        about("groups of experts with equal weights, bit for bit; null: not looked at"),
        ADDED_LATER,
    ] = None
    masked: Annotated[
        Experts,
        about(
            "experts that a row of the router or a bias switches off; routing metrics ignore "
            "those with load 0"
        ),
        ADDED_LATER,
    ] = ()

    @property
    def choices(self) -> int:
        """Number of experts that can be chosen: E minus those that are off."""
        return self.experts - len(self.off)

    @property
    def suspects(self) -> tuple[int, ...]:
        """Experts with a load under the limit of dead experts that the test did not find dead."""
        if not self.load or not self.choices:
            return ()
        limit = SUSPECT / self.choices
        known = {*self.dead, *self.off}
        return tuple(
            expert
            for expert, share in enumerate(self.load)
            if share is not None and share < limit and expert not in known
        )

    @property
    def off(self) -> tuple[int, ...]:
        """Masked experts with load 0."""
        return tuple(e for e in self.masked if self.load is None or not self.load[e])


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """One measured checkpoint."""

    step: Step
    path: Annotated[str, about("relative to the run")]
    fingerprint: str
    coverage: Coverage
    loss: Annotated[Metric, about("nats per loss token on the probe")]
    metrics: Annotated[Metrics, about("over all routers")]
    layers: tuple[LayerRecord, ...]
    fisher: Fisher = field(default_factory=dict)
    verdict: Verdict | None = None
    progress: Annotated[
        Mapping[str, int | float | None], about("step, tokens and fraction, where they are known")
    ] = field(default_factory=dict)
    measurements: Annotated[str | None, about("sha256 of the stored arrays")] = None
    replay: ReplayFacts = field(default_factory=ReplayFacts)
    domain_loss: Annotated[Metrics, about("loss by probe domain"), ADDED_LATER] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True, repr=False)
class RunRecord(Displayable):
    """The JSON output of `moegeo analyze --format json`."""

    status: Completeness
    versions: Mapping[str, str]
    run: RunFacts
    probe: ProbeFacts
    settings: Annotated[Mapping[str, Any], about("all settings of the analysis")]
    baseline: BaselineFacts
    checkpoints: tuple[CheckpointRecord, ...]
    verdict: Verdict | None = None
    interventions: tuple[Intervention, ...] = ()
    dynamics: Annotated[
        tuple[Move, ...], about("one entry per pair of successive checkpoints")
    ] = ()

    @classmethod
    def of_facts(cls, run: RunFacts) -> RunRecord:
        """A run record with facts only and no checkpoint, for `recommend`."""
        none = BaselineFacts(kind=None, step=None, path=None, baseline_draws=None, reason=None)
        return cls("complete", {}, run, {}, {}, none, ())

    @property
    def newest(self) -> CheckpointRecord:
        """The newest complete checkpoint, by which the run is judged."""
        return self.checkpoints[-1]
