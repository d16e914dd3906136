"""Alignment of the Jacobians of a layer's experts, their spectra, and the experts' outputs.

Legend: N kept tokens, T tokens with Jacobians (a part of the N), E experts, D width, G groups of
sequences, S singular values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.commands.experts.tokens import LayerTokens
from moegeo_cli.expert_functions.functions import Experts
from moegeo_cli.expert_functions.jacobians import (
    SPECTRUM_TOKENS,
    PairProducts,
    leading_singular_values,
    mean_products,
    pair_products,
)
from moegeo_cli.geometry.jacobian import (
    AlignmentSums,
    alignment_ratio,
    pair_weights,
    spectral_decay,
)

WEIGHT_BYTES = 64 * 2**20  # bytes of weights that are compared at a time


@dataclass(frozen=True, slots=True)
class Functions:
    """Alignments of a layer's experts, and further numbers from their Jacobians.

    Attributes:
        sums: alignments of all pairs of experts.
        null: alignments of each expert (row) with each disturbed expert (column).
        directions: number of random directions per token; 0 for whole Jacobians.
        mean_EE: alignment of the experts' mean Jacobians.
        singular_ES: leading singular values of each expert's Jacobian, means over a few tokens;
            None for an expert without tokens.
        stable_rank_E: stable rank of each expert's Jacobian; NaN if not known.
        decay_E: slope of ln of the singular values against ln of their index.
        weight_cosine_EE: cosines of the experts' weights; None if not known.
    """

    sums: AlignmentSums
    null: AlignmentSums
    directions: int
    mean_EE: np.ndarray
    singular_ES: list[np.ndarray | None]
    stable_rank_E: np.ndarray
    decay_E: list[float | None]
    weight_cosine_EE: np.ndarray | None


def measure_functions(experts: Experts, tokens: LayerTokens, settings: ExpertSettings) -> Functions:
    """Measure alignments of all pairs of a layer's experts, and further Jacobian numbers.

    Args:
        experts: the experts as functions.
        tokens: the experts' inputs and token weights.
        settings: which tokens count, and at how many tokens Jacobians are computed.
    """
    sums, null, directions = align_pairs(experts, tokens, settings)
    chosen = spread_rows(len(tokens.x_ND), settings.jacobian_tokens)

    def inputs_of(expert: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        mass_T = tokens.mass_NE[chosen, expert]
        share_T = mass_T if settings.tokens != "all" else np.ones(len(chosen))
        own = np.flatnonzero(share_T > 0)
        if not len(own):
            return None
        x_TD = tokens.inputs(chosen[own], expert)
        return x_TD, torch.from_numpy(share_T[own]).to(x_TD)

    singular, stable, decay = _spectra(experts, tokens, settings.seed)
    return Functions(
        sums=sums,
        null=null,
        directions=directions,
        mean_EE=mean_products(experts, inputs_of, settings.seed, settings.buffer_bytes),
        singular_ES=singular,
        stable_rank_E=stable,
        decay_E=decay,
        weight_cosine_EE=weight_cosines(experts),
    )


def align_pairs(
    experts: Experts, tokens: LayerTokens, settings: ExpertSettings
) -> tuple[AlignmentSums, AlignmentSums, int]:
    """Measure the alignments of all pairs of experts.

    Args:
        experts: the experts as functions.
        tokens: the experts' inputs and token weights.
        settings: which tokens count, and at how many tokens Jacobians are computed.

    Returns:
        The alignments, the alignments with disturbed experts (the null), and the number of random
        directions per token (0 for whole Jacobians).
    """
    count = experts.block.experts
    chosen = spread_rows(len(tokens.x_ND), settings.jacobian_tokens)
    x_TD = tokens.x_ND[torch.from_numpy(chosen).to(tokens.x_ND.device)]
    scale_TE = None
    if tokens.scale_NE is not None:
        scale_TE = torch.from_numpy(tokens.scale_NE[chosen]).to(x_TD)
    mass_TE, group_T = tokens.mass_NE[chosen], tokens.group_N[chosen]
    sums, null = AlignmentSums(tokens.groups, count), AlignmentSums(tokens.groups, count)

    def add_products(products: PairProducts) -> None:
        rows = products.tokens
        weights = pair_weights(mass_TE[rows], settings.tokens)
        for into, inner, columns in (
            (sums, products.inner, products.norm),
            (null, products.null_inner, products.null_norm),
        ):
            values, variance = alignment_ratio(inner, products.norm, columns)
            into.add(group_T[rows], weights, values, variance)

    directions = pair_products(
        experts, x_TD, scale_TE, settings.directions, settings.seed, add_products,
        settings.buffer_bytes,
    )  # fmt: skip
    return sums, null, directions


def spread_rows(available: int, wanted: int) -> np.ndarray:
    """Choose `wanted` of `available` rows at even distances, so that all sequences take part."""
    if available <= wanted:
        return np.arange(available)
    return np.linspace(0, available - 1, wanted).round().astype(np.int64)


def _spectra(
    experts: Experts, tokens: LayerTokens, seed: int
) -> tuple[list[np.ndarray | None], np.ndarray, list[float | None]]:
    """Leading singular values, stable rank and decay of each expert, over a few tokens."""
    singular: list[np.ndarray | None] = []
    decay: list[float | None] = []
    stable_E = np.full(experts.block.experts, np.nan)
    for e in range(experts.block.experts):
        own = np.flatnonzero(tokens.mass_NE[:, e] > 0)
        if not len(own):
            singular.append(None)
            decay.append(None)
            continue
        rows = own[spread_rows(len(own), SPECTRUM_TOKENS)]
        function = experts.at(e, tokens.inputs(rows, e))
        values_TS, norm_T = leading_singular_values(function, len(rows), experts.width, seed + e)
        mean_S = values_TS.mean(0)
        singular.append(mean_S)
        decay.append(spectral_decay(mean_S))
        first_T = values_TS[:, 0] ** 2
        if (first_T > 0).all():
            stable_E[e] = float((norm_T / first_T).mean())
    return singular, stable_E, decay


def weight_cosines(experts: Experts) -> np.ndarray | None:
    """Cosines between the experts' weights, shape (E, E). Neurons are not matched.

    None if the weights are not known, or are not all in memory.
    """
    layout = experts.layout
    if layout is None or not all(stack.in_memory for stack in layout.stacks):
        return None
    count = experts.block.experts
    gram = torch.zeros(count, count, dtype=torch.float64)
    for stack in (*layout.inward, layout.outward):
        rows = max(1, WEIGHT_BYTES // (4 * count * stack.shape[1]))
        for start in range(0, stack.shape[0], rows):
            parts = [stack[e][start : start + rows].float().flatten() for e in range(count)]
            flat = torch.stack(parts)
            gram += (flat @ flat.T).double().cpu()
    norm = gram.diagonal().clamp_min(1e-300).sqrt()
    return np.asarray((gram / (norm[:, None] * norm[None, :])).numpy())


def output_rows(experts: Experts, tokens: LayerTokens, expert: int, rows: np.ndarray) -> np.ndarray:
    """An expert's outputs at the kept tokens `rows`: float32, one row per token."""
    with torch.no_grad():
        return np.asarray(experts.at(expert, tokens.inputs(rows, expert)).values().cpu().numpy())
