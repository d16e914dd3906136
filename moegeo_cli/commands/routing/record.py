"""The result of `moegeo routing`: its JSON document.

`UNITS` lists every metric of a router with its unit. docs/reference/routing.md defines them.

Legend: E experts of a router, K experts chosen per token, W the router's weight, x its inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from moegeo_cli.records.facts import ProbeFacts, Step
from moegeo_cli.records.fields import Count, Matrix, Values, about
from moegeo_cli.records.metric import Coverage, Metric, Metrics
from moegeo_cli.records.showing import Displayable
from moegeo_cli.records.similarities import Hidden, Usage
from moegeo_cli.records.verdict import Check, Finding, Intervention

CORRELATION, ABOVE, SHARE = "correlation", "share of experts in common, above chance", "share"
OVERLAP, PROBABILITY = "share of experts in common", "probability"
UNITS: Mapping[str, str] = {
    "row_space_share": "share of variance",
    "shared_energy": "share of energy",
    "response": "logits a unit of length",
    "response_relative": "× a random direction",
    "response_principal": "logits a unit of length",
    "constant_share": "share of logits' energy",
    "collapse": "share of the reachable",
    "overlap_chance": OVERLAP,
    "overlap_unrelated": OVERLAP,
    "overlap_sequence": ABOVE,
    "overlap_position": ABOVE,
    "sequence_affinity": "cosine of roots of loads",
    "domain_overlap_within": ABOVE,
    "domain_overlap_across": ABOVE,
    "domain_gap": ABOVE,
    "domain_p_value": PROBABILITY,
    "domain_specialization": "total variation",
    "vocabulary_overlap": ABOVE,
    "vocabulary_specialization": "share of occurrences",
    "coactivation_excess": "total variation",
    "rollout_overlap": ABOVE,
    "rollout_same_domain": ABOVE,
    "rollout_correlation": CORRELATION,
    "rollout_p_value": PROBABILITY,
    "generated_overlap": ABOVE,
    "generated_same_domain": ABOVE,
    "generated_correlation": CORRELATION,
    "generated_p_value": PROBABILITY,
    "saturation": "share of choices, above chance",
    "mantel": CORRELATION,
    "mantel_spearman": CORRELATION,
    "mantel_p_value": PROBABILITY,
    "expert_match": "cosine of weights",
    "overlap_same_token": ABOVE,
    "depth_trend": CORRELATION,
    "response_with_step": CORRELATION,
    "response_with_collapse": CORRELATION,
}

Pairs = Literal["within", "across", "sequences"]


@dataclass(frozen=True, slots=True)
class GeometryRecord:
    """Correlation between a hidden similarity and a usage similarity, over one kind of pairs.

    `n` of both metrics counts pairs. Their null value is the mean absolute correlation after
    permuting whole sequences.
    """

    pairs: Annotated[
        Pairs, about("pairs of tokens of one sequence, of tokens of two, or of sequences")
    ]
    hidden: Annotated[Hidden, about("similarity of the router's inputs: cosine, or xᵀ WᵀW x′")]
    usage: Annotated[Usage, about("Fisher-Rao, or experts in common")]
    spearman: Metric
    pearson: Metric


@dataclass(frozen=True, slots=True)
class RoutingLayerRecord:
    """One router."""

    layer: Annotated[Count, about("index of the decoder layer")]
    router: Annotated[str, about("module path")]
    experts: Annotated[Count, about("rows that compete for a token")]
    top_k: Count | None
    scoring: str
    metrics: Metrics
    geometry: Annotated[
        tuple[GeometryRecord, ...], about("how hidden similarity goes with usage similarity")
    ] = ()
    domain_load: Annotated[
        Mapping[str, Values], about("share of a domain's tokens that each expert gets; sums to K")
    ] = field(default_factory=dict)
    domain_overlap: Annotated[
        Mapping[str, Mapping[str, float | None]],
        about("experts in common of two domains' tokens, above chance"),
    ] = field(default_factory=dict)
    matrices: Annotated[
        Mapping[str, Matrix],
        about(
            "E x E by name: coactivation, the share of an expert's tokens (row) that another "
            "expert (column) gets too, and coactivation_expected, its value by the loads alone; "
            "null on the diagonal and for an expert without tokens"
        ),
    ] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """One domain of the probe; overlaps are means over routers, above chance."""

    domain: str
    sequences: Count
    tokens: Count
    within: Metric
    across: Metric


@dataclass(frozen=True, slots=True)
class RouterMetrics:
    """Some metrics of one router."""

    layer: Count
    router: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class RoutingStep:
    """One checkpoint of the run."""

    step: Step
    path: Annotated[str, about("relative to the run")]
    fingerprint: str
    coverage: Coverage
    metrics: Annotated[Metrics, about("means over routers")]
    layers: tuple[RouterMetrics, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The run's checkpoints, and how each router changed from first to last."""

    steps: Annotated[tuple[RoutingStep, ...], about("oldest first")]
    changes: Annotated[
        tuple[RouterMetrics, ...], about("last minus first, paired by the probe's sequences")
    ]
    metrics: Annotated[Metrics, about("rank correlations of the response with step and collapse")]


@dataclass(frozen=True, slots=True)
class RouterPair:
    """A router, and the second model's router at the same relative depth."""

    layer: Count
    router: str
    other_layer: Count
    other_router: str
    metrics: Metrics
    partner: Annotated[
        tuple[Count, ...] | None,
        about("each expert's counterpart in the other model; null if experts were not matched"),
    ] = None


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A second model's checkpoint, compared on the same tokens."""

    name: str
    checkpoint: str
    step: Step
    model_type: str
    fingerprint: str
    coverage: Coverage
    lineage: Annotated[
        bool | None,
        about("whether experts' weights show a common ancestor; null if not decided"),
    ]
    lineage_reason: Annotated[str, about("why lineage is true, false or null")]
    layers: tuple[RouterPair, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class RoutingRecord(Displayable):
    """The document that `moegeo routing --format json` prints."""

    status: Annotated[Literal["complete", "partial"], about("partial if a router was not measured")]
    versions: Mapping[str, str]
    name: str
    checkpoint: str
    step: Step
    model_type: str
    probe: ProbeFacts
    settings: Mapping[str, Any]
    coverage: Coverage
    metrics: Annotated[Metrics, about("means over routers, and what depends on depth")]
    layers: tuple[RoutingLayerRecord, ...]
    domains: tuple[DomainRecord, ...] = ()
    trajectory: Annotated[
        Trajectory | None, about("a run's checkpoints; null for one checkpoint")
    ] = None
    other: Annotated[
        OtherModel | None, about("a second model on the same tokens; null without one")
    ] = None
    notes: tuple[str, ...] = ()
    fingerprint: Annotated[str, about("of the checkpoint")] = ""
    findings: Annotated[
        tuple[Finding, ...], about("what the rules found; moegeo analyze lists it too")
    ] = ()
    interventions: tuple[Intervention, ...] = ()
    checks: Annotated[tuple[Check, ...], about("every rule that was tried")] = ()
