"""Small layers of experts: what reaches them drawn from a seed, what they do known by hand.

Each expert is one linear map, so its Jacobian is its matrix at every token.

Legend: N kept tokens, E experts, D width, G groups of sequences.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import nn

from moegeo_cli.commands.experts.alignment import Functions
from moegeo_cli.commands.experts.layers import MeasuredLayer
from moegeo_cli.commands.experts.record import ExpertLayerRecord, ExpertRecord, MergeCandidate
from moegeo_cli.commands.experts.subspaces import Subspaces
from moegeo_cli.commands.experts.tokens import LayerTokens, gather_tokens
from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.geometry.jacobian import AlignmentSums
from moegeo_cli.geometry.resample import Draws, group_sequences, make_draws
from moegeo_cli.records import Metric
from moegeo_cli.replay.plan import Plan, RouterTrace
from tests.traces import EXPERTS, LENGTHS, WIDTH, sequences_of, trace_of

GROUPS_S = group_sequences(len(LENGTHS))
DRAWS: Draws = make_draws(GROUPS_S)
ROWS = np.arange(0, sum(LENGTHS), 2)  # of the probe: those whose inputs are kept


def block_of(trace: RouterTrace, experts: int = EXPERTS, **changes: Any) -> ExpertBlock:
    """Experts that are one matrix each, beside the router of a trace."""
    torch.manual_seed(3)
    members = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(experts))
    return ExpertBlock(
        trace.router, members, **{"form": "list", "experts": experts, "members": tuple(members)}
        | changes,
    )  # fmt: skip


def matrices_of(block: ExpertBlock) -> np.ndarray:
    """J of every expert, (E, D, D)."""
    assert block.members is not None
    return np.stack([m.weight.detach().double().numpy() for m in block.members])


def plan_of(scoring: str = "softmax") -> Plan:
    """Every second token's input is kept."""
    return Plan((), GROUPS_S, scoring=scoring, sample_rows=ROWS)


def kept(trace: RouterTrace) -> RouterTrace:
    """The same trace with the inputs of those rows alone."""
    assert trace.sample_x_MD is not None
    return dataclasses.replace(trace, sample_x_MD=trace.sample_x_MD[ROWS])


def gather(
    trace: RouterTrace, block: ExpertBlock | None = None, weights: str = "topk", **options: Any
) -> LayerTokens | str:
    """The tokens of a trace whose inputs were kept."""
    plan, sequence_T = options.pop("plan", plan_of()), options.pop("sequence_T", sequences_of())
    return gather_tokens(
        block or block_of(trace), trace, plan, sequence_T, weights, torch.device("cpu"),
        **{"hashed": False, "has_loss": True} | options,
    )  # fmt: skip


def tokens_of(seed: int = 1, weights: str = "topk", **changes: Any) -> LayerTokens:
    """The tokens of a drawn trace."""
    found = gather(kept(trace_of(seed)), weights=weights)
    assert isinstance(found, LayerTokens), found
    return dataclasses.replace(found, **changes)


def sums_of(values_TEE: np.ndarray, seed: int = 0, variance: float = 0.0) -> AlignmentSums:
    """Alignments of tokens, each in a group and with a weight that the seed draws."""
    generator = np.random.default_rng(seed)
    sums = AlignmentSums(len(LENGTHS), values_TEE.shape[1])
    group_T = GROUPS_S[sequences_of()][: len(values_TEE)]
    weights_TEE = generator.random(values_TEE.shape)
    sums.add(group_T, weights_TEE, values_TEE, np.full_like(values_TEE, variance))
    return sums


def functions_of(mean_EE: np.ndarray, *, null: float = 0.05, seed: int = 0) -> Functions:
    """What experts with these alignments do; those with disturbed experts are ± `null`."""
    count = len(mean_EE)
    generator = np.random.default_rng(seed)
    tokens = sum(LENGTHS)
    signs_EE = np.where(generator.random((count, count)) < 0.5, -1.0, 1.0)
    return Functions(
        sums=sums_of(np.repeat(mean_EE[None], tokens, 0), seed),
        null=sums_of(np.repeat(null * signs_EE[None], tokens, 0), seed),
        directions=0,
        mean_EE=mean_EE,
        singular_ES=[np.array([2.0, 1.0])] * count,
        stable_rank_E=np.full(count, 1.25),
        decay_E=[-1.0] * count,
        weight_cosine_EE=mean_EE / 2,
    )


def subspaces_of(overlap_EE: np.ndarray, **changes: Any) -> Subspaces:
    """Input subspaces with these overlaps, the same without each group."""
    count = len(overlap_EE)
    left_GEE = np.repeat(overlap_EE[None], len(LENGTHS), 0)
    known: dict[str, Any] = {
        "rank": 2, "distance_EE": 1 - overlap_EE, "overlap_EE": overlap_EE,
        "null_distance_EE": np.full((count, count), 0.7),
        "null_overlap_EE": np.full((count, count), 0.3), "half_distance_E": np.full(count, 0.2),
        "half_overlap_E": np.full(count, 0.9), "left_distance_GEE": 1 - left_GEE,
        "left_overlap_GEE": left_GEE, "effective_rank_E": np.full(count, 3.0),
        "reasons": (None,) * count, "width": WIDTH,
    }  # fmt: skip
    return Subspaces(**known | changes)


def symmetric(seed: int, count: int = EXPERTS) -> np.ndarray:
    """Random values of pairs between 0 and 1, 1 on the diagonal."""
    values = np.random.default_rng(seed).random((count, count))
    values = (values + values.T) / 2
    np.fill_diagonal(values, 1.0)
    return values


def record_of(layer: int = 0, count: int = EXPERTS, **changes: Any) -> ExpertLayerRecord:
    """A layer's record without its numbers."""
    known: dict[str, Any] = {
        "layer": layer, "router": f"model.layers.{layer}.mlp.gate", "experts": count, "top_k": 2,
        "method": "", "directions": 0, "rank": 2, "metrics": {}, "matrices": {},
        "expert": tuple(ExpertRecord(e, 10 * (e + 1), output_norm=float(e + 1))
                        for e in range(count)),
    }  # fmt: skip
    return ExpertLayerRecord(**known | changes)


def merge_of(layer: int, a: int, b: int, value: float | None) -> MergeCandidate:
    """A pair with this alignment."""
    metric = Metric(value, reason=None if value is not None else "none")
    return MergeCandidate(layer, (a, b), metric, Metric(0.5), "words")


def layer_of(layer: int = 0, seed: int = 0, **changes: Any) -> MeasuredLayer:
    """A measured layer with random matrices of pairs."""
    count = changes.pop("count", EXPERTS)
    record = changes.pop("record", record_of(layer, count))
    known: dict[str, Any] = {
        "record": record, "experts": None, "alignment_EE": symmetric(seed, count),
        "overlap_EE": symmetric(seed + 100, count),
        "weight_cosine_EE": symmetric(seed + 200, count),
        "tokens_E": np.array([e.tokens for e in record.expert]),
        "mass_E": np.arange(1.0, count + 1) / count, "fisher_trace_E": np.arange(count, 0.0, -1),
        "merges": (),
    }  # fmt: skip
    return MeasuredLayer(**known | changes)
