"""The result of `moegeo experts`: its JSON document.

Matrices are E × E by expert. An entry is null if the pair could not be measured; the `reasons` of
the two experts say why.

Legend: E experts of a layer that compute something.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from moegeo_cli.records.facts import ProbeFacts, Step
from moegeo_cli.records.fields import ADDED_LATER, Count, Matrix, Share, about
from moegeo_cli.records.metric import Coverage, Metric, Metrics
from moegeo_cli.records.showing import Displayable
from moegeo_cli.records.verdict import Check, Finding, Intervention

Action = Literal["merge", "prune"]
Choice = Literal["ranking", "overlap", "weight cosine", "random"]


@dataclass(frozen=True, slots=True)
class ExpertRecord:
    """One expert of a layer."""

    expert: Count
    tokens: Annotated[Count, about("number of probe tokens dispatched to it")]
    load: Annotated[Share | None, about("share of the dispatch")] = None
    mass: Annotated[float | None, about("share of the combine weights")] = None
    output_norm: Annotated[
        float | None,
        about(
            "mean norm of its output over tokens that reach it; with --weights soft over all "
            "tokens, by the routing distribution"
        ),
    ] = None
    fisher_trace: Annotated[
        float | None, about("trace of its router row's empirical Fisher, unit position")
    ] = None
    rank_input: Annotated[
        float | None,
        about("effective rank of its inputs: exp of the entropy of their spectrum"),
    ] = None
    rank_output: Annotated[float | None, about("effective rank of its outputs")] = None
    split_half_input: Annotated[
        float | None, about("overlap of the input subspaces of its two halves of tokens")
    ] = None
    split_half_output: Annotated[
        float | None, about("overlap of the output subspaces of its two halves")
    ] = None
    singular_values: Annotated[
        tuple[float, ...] | None,
        about("singular values of its Jacobian, means over a few tokens, largest first"),
    ] = None
    stable_rank: Annotated[
        float | None,
        about("squared Frobenius norm of its Jacobian over its largest squared singular value"),
    ] = None
    spectral_decay: Annotated[
        float | None, about("slope of ln of the singular values against ln of their index")
    ] = None
    reasons: Annotated[tuple[str, ...], about("why something is null")] = ()
    nearest: Annotated[
        Count | None,
        about("the expert of its layer with the most similar function"),
        ADDED_LATER,
    ] = None
    nearest_alignment: Annotated[
        Metric | None,
        about("alignment with `nearest`; null if no token counts for that pair"),
        ADDED_LATER,
    ] = None


@dataclass(frozen=True, slots=True)
class ExpertLayerRecord:
    """One router's experts."""

    layer: Annotated[Count, about("index of the decoder layer")]
    router: Annotated[str, about("module path")]
    experts: Annotated[Count, about("number of experts that compute something")]
    top_k: Count | None
    method: Annotated[str, about("how Jacobians were computed, or why they were not")]
    directions: Annotated[
        Count | None,
        about("random directions per token; 0 for whole Jacobians; null without Jacobians"),
    ]
    rank: Annotated[Count | None, about("dimensions of the subspaces")]
    metrics: Metrics
    matrices: Annotated[
        Mapping[str, Matrix], about("E x E by name; null for a pair that was not measured")
    ]
    expert: tuple[ExpertRecord, ...]
    coexist: Annotated[
        bool | None,
        about(
            "whether inputs overlap more than random subspaces and more than functions align, "
            "beyond their intervals, as [GA] finds; null if it could not be decided"
        ),
    ] = None
    seen_alike_done_differently: Annotated[
        Count | None,
        about(
            "number of pairs that rank far higher by overlap of inputs than by alignment: by more "
            "than half of the layer's pairs"
        ),
    ] = None
    seen_differently_done_alike: Annotated[
        Count | None,
        about("number of pairs that rank far higher by alignment than by overlap of inputs"),
    ] = None
    null_limit: Annotated[
        float | None,
        about(
            "alignment that some pair of the layer exceeds by chance with 1% probability; null "
            "if experts were not measured as functions"
        ),
        ADDED_LATER,
    ] = None


@dataclass(frozen=True, slots=True)
class MergeCandidate:
    """Two experts that compute nearly the same."""

    layer: Count
    experts: Annotated[tuple[Count, ...], about("the two experts")]
    alignment: Metric
    overlap: Metric
    reason: str
    router: str = ""
    weight_cosine: float | None = None
    above_null: Annotated[
        bool, about("whether the alignment is above the layer's `null_limit`")
    ] = False
    disagrees: Annotated[
        bool, about("whether inputs alone would rank the pair far higher or far lower")
    ] = False


@dataclass(frozen=True, slots=True)
class PruneCandidate:
    """An expert that contributes little."""

    layer: Count
    expert: Count
    score: Annotated[
        float,
        about("routed mass x output norm x Fisher trace, each relative to its layer; 1: the mean"),
    ]
    reason: str
    router: str = ""
    narrow: Annotated[
        bool,
        about(
            "whether the probe names fewer than two domains, so that text which needs this expert "
            "may be missing"
        ),
        ADDED_LATER,
    ] = False


@dataclass(frozen=True, slots=True)
class Trial:
    """One choice of experts, merged or pruned in memory, and the change of the probe's loss."""

    action: Action
    choice: Annotated[Choice, about("how the experts were chosen")]
    chosen: tuple[str, ...]
    change: Annotated[Metric, about("loss after minus before, in nats per token")]


@dataclass(frozen=True, slots=True)
class Verification:
    """Trials of the top candidates, and of as many experts chosen in other ways."""

    count: Count
    loss: Metric
    trials: tuple[Trial, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class ExpertsRecord(Displayable):
    """The document that `moegeo experts --format json` prints."""

    status: Annotated[
        Literal["complete", "partial"],
        about("partial if a router or its experts' functions were not measured"),
    ]
    versions: Mapping[str, str]
    name: str
    checkpoint: str
    step: Step
    model_type: str
    probe: ProbeFacts
    settings: Mapping[str, Any]
    coverage: Coverage
    loss: Metric
    layers: tuple[ExpertLayerRecord, ...]
    merge_candidates: tuple[MergeCandidate, ...] = ()
    prune_candidates: tuple[PruneCandidate, ...] = ()
    verification: Verification | None = None
    notes: tuple[str, ...] = ()
    fingerprint: Annotated[
        str, about("of the checkpoint; empty or absent in older files"), ADDED_LATER
    ] = ""
    findings: Annotated[
        tuple[Finding, ...], about("what the rules found; moegeo analyze lists it too"), ADDED_LATER
    ] = ()
    interventions: Annotated[tuple[Intervention, ...], ADDED_LATER] = ()
    checks: Annotated[tuple[Check, ...], about("every rule that was tried"), ADDED_LATER] = ()
