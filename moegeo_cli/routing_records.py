"""What `moegeo routing` found, as frozen records: its JSON payload.

Read back with `records.from_dict`. `UNITS` names every number of a router that `metrics` may hold;
docs/reference/routing.md defines them.

Legend: E experts of a router, K experts chosen per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.records import Check, Coverage, Finding, Intervention, Metric, Metrics

FORMAT_NAME = "moegeo.routing"
# 1: first version.
FORMAT_VERSION = 1

Matrix = tuple[tuple[float | None, ...], ...]

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


@dataclass(frozen=True, slots=True)
class GeometryRecord:
    """How a hidden similarity goes with a usage similarity, over one kind of pairs.

    `pairs`: "within" (tokens of one sequence), "across" (of two), "sequences". `hidden`: "cosine"
    of the router's inputs, or "visible", xᵀ WᵀW x′. `usage`: "distribution" (Fisher-Rao) or
    "chosen" (experts in common). `n` of both metrics counts pairs; their null is the mean size of
    the same where whole sequences trade their usage.
    """

    pairs: str
    hidden: str
    usage: str
    spearman: Metric
    pearson: Metric


@dataclass(frozen=True, slots=True)
class RoutingLayerRecord:
    """One router.

    `router` is the module path. `domain_load` gives, by domain, the share of its tokens that each
    expert gets (they sum to K); `domain_overlap`, by two domains, the experts that their tokens
    have in common, above chance. Matrices are E × E by expert: `coactivation` the share of an
    expert's tokens (rows) that another gets as well, `coactivation_expected` what the loads alone
    give.
    """

    layer: int
    router: str
    experts: int
    top_k: int | None
    scoring: str
    metrics: Metrics
    geometry: tuple[GeometryRecord, ...] = ()
    domain_load: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    domain_overlap: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    matrices: Mapping[str, Matrix] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DomainRecord:
    """One domain of the probe; overlaps are means over routers, above chance."""

    domain: str
    sequences: int
    tokens: int
    within: Metric
    across: Metric


@dataclass(frozen=True, slots=True)
class RouterMetrics:
    """Some numbers of one router."""

    layer: int
    router: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class RoutingStep:
    """One checkpoint of the run that the newest one is of; `metrics` are means over routers."""

    step: int | None
    path: str
    fingerprint: str
    coverage: Coverage
    metrics: Metrics
    layers: tuple[RouterMetrics, ...]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The run's checkpoints, oldest first, and how each router changed from first to last.

    `changes` are last less first, paired by the probe's sequences. `metrics` relate them.
    """

    steps: tuple[RoutingStep, ...]
    changes: tuple[RouterMetrics, ...]
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class RouterPair:
    """A router and the other model's at the same depth.

    `partner` gives for each expert its counterpart in the other model; null where none was told.
    """

    layer: int
    router: str
    other_layer: int
    other_router: str
    metrics: Metrics
    partner: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class OtherModel:
    """A second checkpoint on the same tokens.

    `lineage` says whether the two have an ancestor in common, told by their experts' weights: null
    where it could not be told; `lineage_reason` says by what, or why not.
    """

    name: str
    checkpoint: str
    step: int | None
    model_type: str
    fingerprint: str
    coverage: Coverage
    lineage: bool | None
    lineage_reason: str
    layers: tuple[RouterPair, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoutingRecord:
    """What a checkpoint's routing reflects.

    `metrics` are means over routers, and what depends on depth. `trajectory` is there for a run,
    `other` where a second model was given. `checks` are the rules that were tried; what they found
    reaches `moegeo analyze` too.
    """

    status: str
    versions: Mapping[str, str]
    name: str
    checkpoint: str
    step: int | None
    model_type: str
    probe: Mapping[str, Any]
    settings: Mapping[str, Any]
    coverage: Coverage
    metrics: Metrics
    layers: tuple[RoutingLayerRecord, ...]
    domains: tuple[DomainRecord, ...] = ()
    trajectory: Trajectory | None = None
    other: OtherModel | None = None
    notes: tuple[str, ...] = field(default=())
    fingerprint: str = ""
    findings: tuple[Finding, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    checks: tuple[Check, ...] = ()
