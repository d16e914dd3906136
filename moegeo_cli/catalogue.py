"""Every metric by name: unit, direction, label and meaning, for records, reports and docs.

`higher_is_better` is None for descriptive metrics: the specialization index, for one, is
neither good nor bad by itself. `over_routers` says how the run-level value comes from the
routers': mean, sum, or geometric (geometric mean). `worst` says which extreme is also
reported at run level as `<name>_worst`, with the router that it comes from.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """What a metric's name means."""

    name: str
    label: str
    unit: str
    meaning: str
    higher_is_better: bool | None = None
    over_routers: str = "mean"
    worst: str | None = None  # "max" or "min"
    decimals: int = 3


_SPECS = (
    MetricSpec(
        "fsi",
        "FSI",
        "share of d_max",
        "Fisher Specialization Index: mean Fisher-Rao distance of p from uniform",
    ),
    MetricSpec(
        "fsi_dispatch",
        "FSI (dispatch)",
        "share of d_max",
        "the same of the combine weights that the model applies",
    ),
    MetricSpec(
        "collapse",
        "collapse",
        "share of the reachable",
        "Fisher-Rao distance of the dispatch shares from uniform: load imbalance",
        False,
        worst="max",
    ),
    MetricSpec(
        "collapse_soft",
        "collapse (soft)",
        "share of d_max",
        "Fisher-Rao distance of the mean of p from uniform",
        False,
        worst="max",
    ),
    MetricSpec(
        "dispersion",
        "dispersion",
        "share of d_max",
        "mean distance of p from its own mean: routing that differs between tokens",
    ),
    MetricSpec(
        "information",
        "information",
        "share of ln E",
        "mutual information of token and expert under p",
    ),
    MetricSpec(
        "information_dispatch",
        "information (dispatch)",
        "share of ln E",
        "the same under the combine weights",
    ),
    MetricSpec("entropy_token", "token entropy", "share of ln E", "mean entropy of p"),
    MetricSpec(
        "entropy_load",
        "load entropy",
        "share of ln E",
        "entropy of the dispatch shares",
        True,
        worst="min",
    ),
    MetricSpec(
        "entropy_load_rescaled",
        "load entropy (rescaled)",
        "share of [ln K, ln E]",
        "entropy of the dispatch shares on its reachable range",
        True,
    ),
    MetricSpec(
        "effective_experts",
        "effective experts",
        "experts",
        "exp of the entropy of the dispatch shares: how many experts carry the load",
        True,
        worst="min",
        decimals=1,
    ),
    MetricSpec(
        "dead_experts",
        "dead experts",
        "experts",
        "experts significantly under 5% of the fair share on this probe",
        False,
        over_routers="sum",
        worst="max",
        decimals=0,
    ),
    MetricSpec(
        "max_violation",
        "max violation",
        "of fair load",
        "largest load over fair load, minus 1",
        False,
        worst="max",
    ),
    MetricSpec("load_cv", "load CV", "1", "coefficient of variation of the load", False),
    MetricSpec(
        "margin",
        "margin",
        "logits or score",
        "mean gap between the last selected and the best unselected expert",
        worst="min",
    ),
    MetricSpec(
        "near_ties",
        "near ties",
        "share of tokens",
        "tokens whose selection changes when logits are rounded to bfloat16",
        False,
        worst="max",
    ),
    MetricSpec(
        "near_ties_centred",
        "near ties (centred)",
        "share of tokens",
        "near ties once each token's mean logit is taken off before rounding",
        False,
        worst="max",
    ),
    MetricSpec(
        "bias_spread",
        "bias spread",
        "selection score",
        "largest minus smallest selection bias of a router",
    ),
    MetricSpec(
        "bias_changes",
        "choices lost to rounding",
        "share of tokens",
        "tokens that some selection bias that rounds to the stored one would send elsewhere",
        False,
        worst="max",
    ),
    MetricSpec(
        "logit_z",
        "logit z",
        "nats²",
        "mean squared logsumexp, as the z-loss sees it",
        False,
        worst="max",
    ),
    MetricSpec(
        "logit_max",
        "largest logit",
        "nats",
        "largest absolute logit, centred over experts for softmax",
        False,
        worst="max",
    ),
    MetricSpec(
        "router_cosine",
        "row cosine",
        "1",
        "mean absolute cosine between router rows: the heuristic that FSI replaces",
    ),
    MetricSpec(
        "heterogeneity",
        "heterogeneity",
        "nats² per weight²",
        "mean distance of the experts' diagonal Fishers from their mean",
        decimals=6,
    ),
    MetricSpec(
        "heterogeneity_relative",
        "heterogeneity (relative)",
        "1",
        "heterogeneity over the norm of the mean Fisher",
    ),
    MetricSpec(
        "heterogeneity_trace",
        "heterogeneity (trace)",
        "1",
        "spread of the Fisher traces over their mean",
    ),
    MetricSpec(
        "heterogeneity_conditional",
        "heterogeneity (conditional)",
        "1",
        "the trace form with each Fisher per its own mass: load taken out",
    ),
    MetricSpec(
        "fhs",
        "FHS",
        "× baseline",
        "Fisher Heterogeneity Score: H(t) / H(0)",
        over_routers="geometric",
        worst="max",
    ),
    MetricSpec(
        "fhs_relative",
        "FHS (relative)",
        "× baseline",
        "the relative form's ratio",
        over_routers="geometric",
        worst="max",
    ),
    MetricSpec(
        "fhs_trace",
        "FHS (trace)",
        "× baseline",
        "the trace form's ratio",
        over_routers="geometric",
        worst="max",
    ),
    MetricSpec(
        "fhs_conditional",
        "FHS (conditional)",
        "× baseline",
        "the conditional form's ratio",
        over_routers="geometric",
        worst="max",
    ),
    MetricSpec(
        "low_sample_experts",
        "experts < 30 tokens",
        "experts",
        "experts with fewer than 30 dispatched tokens: their Fisher is a rough guess",
        False,
        over_routers="sum",
        decimals=0,
    ),
)

# How routing moves between two checkpoints, on the same tokens.
_DYNAMICS = (
    MetricSpec("speed", "speed", "radians", "mean Fisher-Rao distance that a token's p moved"),
    MetricSpec("fsi_rate", "FSI change", "share of d_max", "change of FSI on the sampled tokens"),
    MetricSpec(
        "fsi_rate_bound",
        "bound on FSI change",
        "share of d_max",
        "speed / d_max: the triangle inequality allows no larger change of FSI",
    ),
    MetricSpec("fsi_rate_share", "share of its bound", "1", "FSI change over its bound"),
    MetricSpec(
        "fisher_step",
        "Fisher step",
        "radians²",
        "mean squared length of the step under the Fisher metric, inputs held fixed",
        decimals=6,
    ),
    MetricSpec("fisher_step_root", "Fisher step (root)", "radians", "its root"),
    MetricSpec(
        "rms_fixed_input",
        "rms distance, fixed input",
        "radians",
        "root mean square distance that the router's own change moves p",
    ),
    MetricSpec(
        "rms_total",
        "rms distance, total",
        "radians",
        "root mean square distance that p moved, on the same tokens",
    ),
    MetricSpec(
        "rms_moving_input",
        "rms distance, moving input",
        "radians",
        "what moving inputs add to the router's own change",
    ),
    MetricSpec(
        "diagonal_error",
        "error of the diagonal",
        "1",
        "the step under the diagonal Fisher over that under the full one, minus 1",
    ),
    MetricSpec(
        "saturation",
        "saturation",
        "above chance",
        "share of the earlier checkpoint's choices that are the last one's already",
    ),
    MetricSpec(
        "bias_response",
        "bias response",
        "rank correlation",
        "of the selection bias's change with the load at the checkpoint before; negative balances",
    ),
    MetricSpec(
        "geodesic_excess",
        "geodesic excess",
        "1",
        "length of the way from the first checkpoint over the shortest one, minus 1",
    ),
)
# What `moegeo check` reads from the files.
_FILES = (
    MetricSpec("row_norm", "row norm", "1", "mean norm of a router's rows"),
    MetricSpec(
        "row_norm_spread", "spread of row norms", "of their mean", "standard deviation over rows"
    ),
    MetricSpec(
        "stable_rank",
        "stable rank",
        "1",
        "squared Frobenius norm of a router over its squared spectral norm",
        decimals=2,
    ),
    MetricSpec(
        "bias_drift",
        "bias drift",
        "selection score",
        "mean absolute change of the selection bias since the checkpoint before",
    ),
    MetricSpec("expert_norm", "expert norm", "1", "mean Frobenius norm of an expert's matrices"),
    MetricSpec(
        "expert_norm_spread",
        "spread of expert norms",
        "of their mean",
        "standard deviation over experts",
    ),
    MetricSpec(
        "expert_norm_top",
        "largest expert",
        "of the median",
        "largest expert's norm over the median",
    ),
    MetricSpec(
        "expert_distance",
        "distance of experts",
        "of independent ones",
        "mean distance of two experts of a layer over that of independent ones of their norms",
    ),
    MetricSpec(
        "expert_drift",
        "drift of experts",
        "of the first norm",
        "mean distance of an expert from itself at the first checkpoint, over its norm there",
    ),
    MetricSpec(
        "own_row",
        "own row",
        "share",
        "experts that the router's row for them passes through most strongly of all its rows",
        decimals=2,
    ),
    MetricSpec(
        "routers_moved",
        "routers moved",
        "share",
        "routers whose bytes differ from the checkpoint before",
        decimals=2,
    ),
    MetricSpec(
        "experts_moved",
        "experts moved",
        "share",
        "experts whose bytes differ from the checkpoint before",
        decimals=2,
    ),
    MetricSpec(
        "others_moved",
        "other weights moved",
        "share",
        "all other weights, by number, in tensors whose bytes differ from the checkpoint before",
        decimals=2,
    ),
)
_LOSS = MetricSpec("loss", "loss", "nats per token", "next-token cross-entropy", False)

SPECS: dict[str, MetricSpec] = {spec.name: spec for spec in (*_SPECS, *_DYNAMICS, *_FILES, _LOSS)}
