"""Measures the experts of one layer: metrics with intervals and null values, and matrices.

Legend: N kept tokens, D width, E experts, P pairs of them, G groups of sequences, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import ndtri

from moegeo_cli.commands.experts.alignment import Functions, measure_functions, output_rows
from moegeo_cli.commands.experts.merging import best_merges, disagreements
from moegeo_cli.commands.experts.metrics import describe_expert, layer_metrics, list_matrices
from moegeo_cli.commands.experts.record import ExpertLayerRecord, MergeCandidate
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.commands.experts.subspaces import (
    BLAS_THREADS,
    ExpertRows,
    Subspaces,
    measure_subspaces,
)
from moegeo_cli.commands.experts.tokens import LayerTokens
from moegeo_cli.expert_functions.functions import Experts, open_experts
from moegeo_cli.geometry.resample import Draws
from moegeo_cli.records import Metric
from moegeo_cli.threads import few_threads

POOL_TOKENS = 4096  # tokens of the layer from which the null of the subspaces draws
# Significance level for the most aligned pair of a layer (Bonferroni over its pairs).
NULL_LEVEL = 0.01


@dataclass(frozen=True)
class MeasuredLayer:
    """A layer's record, and the numbers by which experts are chosen afterwards.

    Sums by group of sequences, and the tokens themselves, are not kept.

    Attributes:
        record: the layer's record.
        experts: the experts as functions; None if they could not be measured as functions.
        alignment_EE: alignment of each pair; None if not measured as functions.
        overlap_EE: overlap of the input subspaces of each pair.
        weight_cosine_EE: cosine of the weights of each pair; None if not known.
        tokens_E: number of tokens dispatched to each expert.
        mass_E: each expert's share of the combine weights.
        fisher_trace_E: trace of the Fisher of each router row; or, as text, why it is missing.
        merges: the layer's best pairs to merge.
    """

    record: ExpertLayerRecord
    experts: Experts | None
    alignment_EE: np.ndarray | None
    overlap_EE: np.ndarray
    weight_cosine_EE: np.ndarray | None
    tokens_E: np.ndarray
    mass_E: np.ndarray
    fisher_trace_E: np.ndarray | str
    merges: tuple[MergeCandidate, ...]


def measure_layer(
    tokens: LayerTokens, draws: Draws, settings: ExpertSettings, listed: int
) -> MeasuredLayer:
    """Measure one router's experts.

    Args:
        tokens: the experts' inputs and token weights.
        draws: the bootstrap draws, shared by all layers.
        settings: how to measure.
        listed: number of merge candidates to describe.
    """
    experts = None
    if not tokens.block.problem:
        experts = open_experts(tokens.block, tokens.inputs(_first_tokens(tokens), 0))
        problem = _not_finite(experts, tokens)
        if problem:
            experts, tokens = None, replace(tokens, block=replace(tokens.block, problem=problem))
    block = tokens.block
    functions = None if experts is None else measure_functions(experts, tokens, settings)
    rows_E = [tokens.rows_of(e, settings.seed) for e in range(block.experts)]
    inputs = _subspaces(
        tokens, [_to_numpy(tokens.inputs(r, e)) for e, r in enumerate(rows_E)], rows_E, settings,
        pool_ND=_to_numpy(tokens.x_ND[:POOL_TOKENS]) if tokens.scale_NE is None else None,
    )  # fmt: skip
    norm_E: np.ndarray = np.full(block.experts, np.nan)
    outputs = None
    if experts is not None:
        outputs_E = [output_rows(experts, tokens, e, r) for e, r in enumerate(rows_E)]
        norm_E = np.array([
            np.average(np.linalg.norm(y, axis=1), weights=tokens.mass_NE[r, e]) if len(y)
            else np.nan
            for e, (y, r) in enumerate(zip(outputs_E, rows_E, strict=True))
        ])  # fmt: skip
        outputs = _subspaces(tokens, outputs_E, rows_E, settings)
    limit = None if functions is None else null_limit(functions)
    metrics = layer_metrics(tokens, functions, inputs, outputs, draws)
    disagreeing = disagreements(functions, inputs)
    record = ExpertLayerRecord(
        layer=block.router.layer,
        router=block.router.path,
        experts=block.experts,
        top_k=block.router.top_k,
        method=block.problem or (experts.method if experts else ""),
        directions=None if functions is None else functions.directions,
        rank=inputs.rank,
        metrics=metrics,
        matrices=list_matrices(functions, inputs, outputs),
        expert=tuple(
            describe_expert(e, tokens, functions, inputs, outputs, norm_E, draws)
            for e in range(block.experts)
        ),
        coexist=_coexist(metrics),
        seen_alike_done_differently=None if disagreeing is None else int(disagreeing[0].sum()),
        seen_differently_done_alike=None if disagreeing is None else int(disagreeing[1].sum()),
        null_limit=limit,
    )
    return MeasuredLayer(
        record=record,
        experts=experts,
        alignment_EE=None if functions is None else functions.sums.mean_EE,
        overlap_EE=inputs.overlap_EE,
        weight_cosine_EE=None if functions is None else functions.weight_cosine_EE,
        tokens_E=tokens.tokens_E,
        mass_E=tokens.mass_E,
        fisher_trace_E=tokens.fisher_trace_E,
        merges=() if functions is None
        else best_merges(record, functions, inputs, draws, listed),
    )  # fmt: skip


def _coexist(metrics: Mapping[str, Metric]) -> bool | None:
    """Whether inputs overlap more than random subspaces, and more than functions align.

    Both must hold beyond the interval. None if it could not be decided.
    """
    asymmetry_low, overlap_low = metrics["asymmetry"].ci_low, metrics["overlap_input"].ci_low
    chance = metrics["overlap_chance"].value
    if asymmetry_low is None or overlap_low is None or chance is None:
        return None
    return asymmetry_low > 0 and overlap_low > chance


def null_limit(functions: Functions) -> float | None:
    """The alignment that some pair of the layer exceeds by chance with 1% probability.

    The null distribution is normal with the spread of alignments with disturbed experts. The level
    is divided by the number of pairs (Bonferroni). None if there are no such alignments.
    """
    null_EE = functions.null.mean_EE
    off = ~np.eye(len(null_EE), dtype=bool) & np.isfinite(null_EE)
    if not off.any():
        return None
    spread = float(np.sqrt((null_EE[off] ** 2).mean()))
    return spread * float(-ndtri(NULL_LEVEL / max(off.sum() / 2, 1)))


def _not_finite(experts: Experts, tokens: LayerTokens) -> str | None:
    """A message that names experts whose outputs are not finite; None if all are finite."""
    rows = _first_tokens(tokens)
    lost = [
        str(e)
        for e in range(experts.block.experts)
        if not experts.at(e, tokens.inputs(rows, e)).values().isfinite().all()
    ]
    if not lost:
        return None
    return f"expert{'s' if len(lost) > 1 else ''} {', '.join(lost)} of the layer: no finite values"


def _first_tokens(tokens: LayerTokens) -> np.ndarray:
    """The first few kept tokens, to compare a closed form with the model."""
    return np.arange(min(len(tokens.x_ND), 4))


def _to_numpy(rows: torch.Tensor) -> np.ndarray:
    return np.asarray(rows.float().cpu().numpy())


def _subspaces(
    tokens: LayerTokens,
    values_E: list[np.ndarray],
    rows_E: list[np.ndarray],
    settings: ExpertSettings,
    pool_ND: np.ndarray | None = None,
) -> Subspaces:
    """Subspaces of each expert's rows. Without a pool, the null draws from all experts' rows."""
    experts = [
        ExpertRows(values, tokens.weight_NE[rows, e], tokens.group_N[rows])
        for e, (values, rows) in enumerate(zip(values_E, rows_E, strict=True))
    ]
    if pool_ND is None:
        total = sum(map(len, values_E))
        step = max(1, -(-total // POOL_TOKENS))
        pool_ND = np.concatenate([values[::step] for values in values_E])
    with few_threads(BLAS_THREADS):
        return measure_subspaces(experts, pool_ND, settings.rank, tokens.groups, settings.seed)
