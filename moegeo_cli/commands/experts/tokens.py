"""Gathers the inputs of one router's experts at kept tokens, and the weights of tokens.

Legend: T probe positions, N kept tokens, D width, E experts that do work, K chosen per token,
G groups of sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.fisher.accumulation import FisherAccumulator
from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.replay.plan import Plan, RouterTrace
from moegeo_cli.scorings import find_scoring

# Number of tokens from which a subspace is computed. More tokens cost time and add little.
SUBSPACE_TOKENS = 1024


@dataclass(frozen=True)
class LayerTokens:
    """Kept tokens of one router, and sums over the whole probe.

    Attributes:
        block: the experts.
        x_ND: inputs of the kept tokens.
        group_N: group of sequences of each kept token.
        groups: number of groups of sequences.
        mass_NE: how much a token belongs to an expert: 1 or 0 by dispatch, or with "soft" weights
            the routing distribution.
        weight_NE: weight of a token among the expert's tokens: combine weight, or with "soft"
            weights the routing distribution.
        scale_NE: factor on an expert's input; None if the architecture does not scale inputs.
        tokens_E: number of probe tokens dispatched to each expert.
        load_E: share of the dispatch.
        mass_E: share of the combine weights.
        fisher_trace_E: trace of the empirical Fisher of each router row; or, as text, why it is
            missing.
    """

    block: ExpertBlock
    x_ND: torch.Tensor
    group_N: np.ndarray
    groups: int
    mass_NE: np.ndarray
    weight_NE: np.ndarray
    scale_NE: np.ndarray | None
    tokens_E: np.ndarray
    load_E: np.ndarray
    mass_E: np.ndarray
    fisher_trace_E: np.ndarray | str

    def inputs(self, rows: np.ndarray, expert: int) -> torch.Tensor:
        """An expert's inputs at the kept tokens `rows`, shape (rows, D)."""
        x_ND = self.x_ND[torch.from_numpy(rows).to(self.x_ND.device)]
        if self.scale_NE is None:
            return x_ND
        scale_N = torch.from_numpy(self.scale_NE[rows, expert]).to(x_ND)
        return x_ND * scale_N[:, None]

    def rows_of(self, expert: int, seed: int) -> np.ndarray:
        """Rows of an expert's kept tokens, at most `SUBSPACE_TOKENS`, in the probe's order."""
        rows = np.flatnonzero(self.weight_NE[:, expert] > 0)
        if len(rows) <= SUBSPACE_TOKENS:
            return rows
        generator = np.random.default_rng([seed, expert])
        return np.sort(generator.choice(rows, SUBSPACE_TOKENS, replace=False))


def gather_tokens(
    block: ExpertBlock,
    trace: RouterTrace,
    plan: Plan,
    sequence_T: np.ndarray,
    weights: str,
    device: torch.device,
    *,
    hashed: bool,
    has_loss: bool,
) -> LayerTokens | str:
    """Gather the tokens of one router.

    Args:
        block: its experts.
        trace: the router's trace of a replay.
        plan: the plan of that replay: which inputs were kept, groups of sequences, scoring.
        sequence_T: sequence of each probe position.
        weights: "topk" or "soft".
        device: where the experts are.
        hashed: whether the layer dispatches by token id.
        has_loss: whether any token counts towards a loss.

    Returns:
        The tokens; or, as text, why they could not be gathered.
    """
    selected, combine, x = trace.selected_TK, trace.weights_TK, trace.sample_x_MD
    if trace.problem or selected is None or combine is None or x is None:
        return trace.problem or "the experts were not called"
    assert plan.sample_rows is not None
    rows_N, group_T = plan.sample_rows, plan.groups_S[sequence_T]
    if trace.rows is not None:  # the encoder or decoder of a pair: only its own tokens
        kept_N = np.isin(rows_N, trace.rows)
        rows_N, x = rows_N[kept_N], x[kept_N]
        selected, combine = selected[trace.rows], combine[trace.rows]
    logits_NE = trace.logits_TE[rows_N]
    place_N = rows_N if trace.rows is None else np.searchsorted(trace.rows, rows_N)
    if not np.isfinite(x).all() or not np.isfinite(combine).all():
        return "the experts' inputs or weights are not finite"
    if not hashed and not np.isfinite(logits_NE).all():
        return "the router's logits are not finite"
    if weights == "soft" and hashed:
        return "a hash router has no routing distribution to weight tokens by"
    count = block.experts
    dispatch_TE, combine_TE = _spread(selected, combine, trace.router.experts)
    if block.renormalised:
        combine_TE /= np.maximum(combine_TE.sum(1, keepdims=True), 1e-300)
    mass_NE = dispatch_TE[place_N, :count].astype(np.float64)
    weight_NE = combine_TE[place_N, :count]
    if block.scales_input:  # the combine weight already scales the input
        weight_NE = mass_NE
    if weights == "soft":
        mass_NE = weight_NE = probabilities(logits_NE, plan.scoring)[:, :count]
    scale_NE = (
        find_scoring(plan.scoring).score(logits_NE)[:, :count] if block.scales_input else None
    )
    total = combine_TE.sum()
    return LayerTokens(
        block=block,
        x_ND=torch.from_numpy(x).to(device),
        group_N=group_T[rows_N],
        groups=int(plan.groups_S.max()) + 1,
        mass_NE=mass_NE,
        weight_NE=weight_NE,
        scale_NE=scale_NE,
        tokens_E=dispatch_TE[:, :count].sum(0),
        load_E=dispatch_TE[:, :count].sum(0) / max(dispatch_TE.sum(), 1),
        mass_E=combine_TE[:, :count].sum(0) / (total if total > 0 else 1.0),
        fisher_trace_E=HASHED if hashed else _fisher_trace(trace, count, len(selected), has_loss),
    )


def _spread(
    selected_TK: np.ndarray, combine_TK: np.ndarray, experts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dispatch and combine weights by expert, each (T, E), from the K chosen experts."""
    rows = np.arange(len(selected_TK))[:, None]
    inside = (selected_TK >= 0) & (selected_TK < experts)
    chosen = np.where(inside, selected_TK, 0)
    dispatch = np.zeros((len(selected_TK), experts), dtype=bool)
    combine = np.zeros((len(selected_TK), experts))
    np.logical_or.at(dispatch, (rows, chosen), inside)
    np.add.at(combine, (rows, chosen), np.where(inside, np.maximum(combine_TK, 0.0), 0.0))
    return dispatch, combine


def _fisher_trace(trace: RouterTrace, count: int, tokens: int, has_loss: bool) -> np.ndarray | str:
    """Trace of the empirical Fisher of each router row, per token; or, as text, why not."""
    found: FisherAccumulator | None = trace.fishers.get(("empirical", "position"))
    if found is None or not has_loss:
        return "no token counts towards a loss"
    trace_E: np.ndarray = found.totals()[0].sum(1)[:count] / tokens
    return trace_E if np.isfinite(trace_E).all() else "the loss's gradient is not finite"
