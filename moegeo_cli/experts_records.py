"""What `moegeo experts` found, as frozen records: its JSON payload.

Read back with `records.from_dict`. Matrices are E × E by expert; an entry is null where the pair
could not be measured, and the layer's `reasons` say why by expert.

Legend: E experts of a layer that do work, S singular values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from moegeo_cli.records import Check, Coverage, Finding, Intervention, Metric, Metrics

FORMAT_NAME = "moegeo.experts"
# 1: first version; fingerprint, findings, interventions and checks, nearest experts and null_limit
#    came later within it.
FORMAT_VERSION = 1

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert of a layer.

    `tokens` are those dispatched to it on the probe, `load` their share of the dispatch, `mass` its
    share of the combine weights. `output_norm` is the mean ‖f(x)‖ over tokens that reach it (with
    `--weights soft` over all, by the routing distribution), `fisher_trace` that of its router row.
    `rank_input` and `rank_output` are effective ranks. `singular_values` are means over a few of
    its tokens, largest first; `stable_rank` is ‖J‖² / σ₁² and `spectral_decay` the slope of ln σ_i
    against ln i. `split_half_input` is the overlap of the subspaces of its two halves of tokens.
    `nearest` is the expert of its layer that computes most nearly the same, `nearest_alignment` how
    nearly: null where no token counts for a pair with it. `reasons` say what is missing.
    """

    expert: int
    tokens: int
    load: float | None = None
    mass: float | None = None
    output_norm: float | None = None
    fisher_trace: float | None = None
    rank_input: float | None = None
    rank_output: float | None = None
    split_half_input: float | None = None
    split_half_output: float | None = None
    singular_values: tuple[float, ...] | None = None
    stable_rank: float | None = None
    spectral_decay: float | None = None
    reasons: tuple[str, ...] = ()
    nearest: int | None = None
    nearest_alignment: Metric | None = None


@dataclass(frozen=True, slots=True)
class ExpertLayerRecord:
    """One router's experts.

    `router` is the module path. `method` says how the Jacobians came about, `directions` how many
    random ones a token had, 0 where they are exact, null where there are none. `rank` is that of
    the subspaces. `coexist` says whether functions differ while subspaces overlap, as [GA] finds:
    the interval of `asymmetry` lies above 0, that of the overlap above what random subspaces have;
    null where it could not be told. `seen_alike_done_differently` counts pairs whose rank by
    overlap is over half the ranking above that by alignment. `null_limit` is the alignment that one
    of the layer's pairs exceeds by chance with 1% probability; null where there are no functions.
    """

    layer: int
    router: str
    experts: int
    top_k: int | None
    method: str
    directions: int | None
    rank: int | None
    metrics: Metrics
    matrices: Mapping[str, Matrix]
    expert: tuple[ExpertRecord, ...]
    coexist: bool | None = None
    seen_alike_done_differently: int | None = None
    seen_differently_done_alike: int | None = None
    null_limit: float | None = None


@dataclass(frozen=True, slots=True)
class MergeCandidate:
    """Two experts that compute nearly the same; `disagrees` where their inputs say otherwise."""

    layer: int
    experts: tuple[int, ...]
    alignment: Metric
    overlap: Metric
    reason: str
    router: str = ""
    weight_cosine: float | None = None
    above_null: bool = False
    disagrees: bool = False


@dataclass(frozen=True, slots=True)
class PruneCandidate:
    """An expert that little passes through; `score` is relative to its layer, 1 the mean.

    `narrow`: the probe names fewer than two domains, so that text that needs the expert may be
    missing from it.
    """

    layer: int
    expert: int
    score: float
    reason: str
    router: str = ""
    narrow: bool = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of experts, applied in memory, and what it did to the probe's loss.

    `action` is "merge" or "prune", `choice` how the experts were chosen: "ranking", "overlap",
    "weight cosine" or "random". `change` is in nats a token, after less before.
    """

    action: str
    choice: str
    chosen: tuple[str, ...]
    change: Metric


@dataclass(frozen=True, slots=True)
class Verification:
    """Trials of the top candidates beside as many others."""

    count: int
    loss: Metric
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExpertsRecord:
    """A checkpoint's experts as functions, and what they are given.

    `checks` are the rules that were tried on it; what they found reaches `moegeo analyze` too.
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
    loss: Metric
    layers: tuple[ExpertLayerRecord, ...]
    merge_candidates: tuple[MergeCandidate, ...] = ()
    prune_candidates: tuple[PruneCandidate, ...] = ()
    verification: Verification | None = None
    notes: tuple[str, ...] = field(default=())
    fingerprint: str = ""  # of the checkpoint; "" in older files
    findings: tuple[Finding, ...] = ()
    interventions: tuple[Intervention, ...] = ()
    checks: tuple[Check, ...] = ()
