"""The Jacobians of a layer's experts at the same tokens: products between all pairs.

What it costs, for each token and direction: one product with each of an expert's maps, and the
E × E products of what comes out; the null adds one map. Tokens are taken in chunks, so that the
memory does not grow with them.

Legend: T tokens, M directions a token, D width of the input, O of the output, F inner neurons,
E experts, S singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.expert_functions.functions import ExpertFunction, Experts

BUFFER_BYTES = 128 * 2**20  # of what a chunk of tokens has at one time
# Arrays of float64 that hold the products of all pairs while they are formed and summed.
PAIR_ARRAYS = 10
# Exact Jacobians where they cost no more floating-point operations a layer than this.
EXACT_OPERATIONS = 2e11
DIRECTIONS = 4
MEAN_DIRECTIONS, MEAN_DIRECTIONS_CALLED = 256, 16
SPECTRUM_TOKENS, SINGULAR_VALUES, OVERSAMPLING, POWER_STEPS = 4, 16, 8, 2
NORM_DIRECTIONS = 32
EXACT_SPECTRUM = 256  # widths up to this have their singular values from the Jacobian itself
NULL_SEED = 1_000_003  # apart from the seeds of directions


@dataclass(frozen=True, slots=True)
class PairProducts:
    """Products at a chunk of tokens, as (T, M, E, E) and norms (T, M, E); M is 1 where exact.

    `null` holds them between each expert (rows) and each disturbed one (columns).
    """

    tokens: slice
    inner: np.ndarray
    norm: np.ndarray
    null_inner: np.ndarray
    null_norm: np.ndarray


def is_exact(experts: Experts, tokens: int, directions: int | None) -> bool:
    """Whether a layer's Jacobians are computed whole: with `--directions 0`, or if cheap."""
    if directions is not None:
        return directions == 0
    layout = experts.layout
    inner = layout.neurons if layout is not None else 4 * experts.width
    return 4.0 * experts.block.experts * tokens * experts.width**2 * inner <= EXACT_OPERATIONS


def pair_products(
    experts: Experts,
    x_TD: torch.Tensor,
    scale_TE: torch.Tensor | None,
    directions: int | None,
    seed: int,
    take: Callable[[PairProducts], None],
    buffer: int | None = None,
) -> int:
    """Give the products of all pairs of experts, chunk by chunk.

    Args:
        experts: the layer's experts.
        x_TD: tokens, the same for every expert.
        scale_TE: what each expert's copy of a token is multiplied by before it gets there; None
            for 1.
        directions: M random signs a token; 0 for the whole Jacobians; None to choose by cost.
        seed: of the directions and of the null.
        take: hears of each chunk.
        buffer: bytes that a chunk may take, and those of its pairs that are formed at one time; at
            least one token. None for the usual.

    Returns:
        M, or 0 where the products are exact.
    """
    tokens, width = x_TD.shape
    count, device = experts.block.experts, x_TD.device
    exact = is_exact(experts, tokens, directions)
    many = 0 if exact else directions or DIRECTIONS
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        outward = int(experts.at(0, x_TD[:1]).values().shape[1])
        copies = 16 if exact else 8  # bytes of both results; exact ones are laid out once more
        size = copies * count * (width if exact else many) * outward
        pairs = 8 * PAIR_ARRAYS * count**2 * (1 if exact else many)
        step, part = (max(1, (buffer or BUFFER_BYTES) // n) for n in (size, pairs))
        for start in range(0, tokens, step):
            rows = slice(start, min(start + step, tokens))
            here = rows.stop - rows.start
            if exact:
                v = torch.eye(width, device=device)[None]
            else:
                v = torch.randint(0, 2, (here, many, width), generator=generator) * 2.0 - 1.0
                v = v.to(device)
            own, other = torch.empty(2, here, v.shape[1], count, outward, device=device)
            for e in range(count):
                x_ND = x_TD[rows] if scale_TE is None else x_TD[rows] * scale_TE[rows, e, None]
                own[:, :, e], other[:, :, e] = experts.at(e, x_ND).disturbed(v, NULL_SEED + e)
            for first in range(0, here, part):  # experts are called once a chunk, pairs in parts
                few = slice(first, min(first + part, here))
                place = slice(start + few.start, start + few.stop)
                take(_products(place, own[few], other[few], exact))
    return many


def _products(rows: slice, own: torch.Tensor, other: torch.Tensor, exact: bool) -> PairProducts:
    """Products of (T, M, E, O), one per direction; if exact, summed over directions."""
    tokens, many, count, outward = own.shape
    if exact:
        own, other = (
            part.transpose(1, 2).reshape(tokens, 1, count, many * outward) for part in (own, other)
        )
    back = own.transpose(-1, -2)

    def host(value: torch.Tensor) -> np.ndarray:
        return np.asarray(value.double().cpu().numpy())

    return PairProducts(
        tokens=rows,
        inner=host(own @ back),
        norm=host(own.square().sum(-1)),
        null_inner=host((other @ back).transpose(-1, -2)),
        null_norm=host(other.square().sum(-1)),
    )


def mean_products(
    experts: Experts,
    inputs_of: Callable[[int], tuple[torch.Tensor, torch.Tensor] | None],
    seed: int,
    buffer: int | None = None,
) -> np.ndarray:
    """Alignment of the experts' mean Jacobians, each over its own tokens: (E, E).

    Exact for widths up to 256, else from 256 shared directions (16 where autograd is needed).
    NaN where an expert has no token.

    Args:
        experts: the layer's experts.
        inputs_of: an expert's tokens and their weights, None where it has none.
        seed: of the directions.
        buffer: bytes that the experts' products with some directions may take; None for 16 times
            the usual buffer.
    """
    limit = MEAN_DIRECTIONS if experts.layout is not None else MEAN_DIRECTIONS_CALLED
    width, count = experts.width, experts.block.experts
    have = [e for e in range(count) if inputs_of(e) is not None]
    found_EE = np.full((count, count), np.nan)
    if not have:
        return found_EE

    def push(e: int, v_MD: torch.Tensor) -> torch.Tensor:
        given = inputs_of(e)
        assert given is not None
        with torch.no_grad():
            return experts.at(e, given[0]).mean_push(given[1], v_MD).flatten()

    first = inputs_of(have[0])
    assert first is not None
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (limit, width), generator=generator) * 2.0 - 1.0
    v_MD = (torch.eye(width) if width <= limit else signs).to(first[0].device)
    outward = push(have[0], v_MD[:1]).numel()
    step = max(1, (buffer or 16 * BUFFER_BYTES) // (8 * len(have) * outward))
    parts = v_MD.split(step)
    if len(parts) == 1:
        rows = [push(e, v_MD) for e in have]
        stacked = torch.stack([row / row.norm().clamp_min(1e-30) for row in rows])
        products = (stacked @ stacked.T).double()
    else:
        products = torch.zeros(len(have), len(have), dtype=torch.double, device=v_MD.device)
        for part in parts:
            stacked = torch.stack([push(e, part) for e in have])
            products += (stacked @ stacked.T).double()
        norms = products.diagonal().sqrt().clamp_min(1e-30)
        products /= norms[:, None] * norms
    found_EE[np.ix_(have, have)] = products.cpu().numpy()
    return found_EE


def leading_singular_values(
    function: ExpertFunction, tokens: int, width: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Largest singular values of an expert's Jacobian at a few tokens, and its squared norm.

    From the Jacobian itself for widths up to 256; else by a randomised range finder with two
    power steps (Halko, Martinsson and Tropp 2011), the norm from 32 random directions.

    Returns:
        Shapes (T, S), largest first, and (T,).
    """
    with torch.no_grad():
        if width <= EXACT_SPECTRUM:
            whole = function.push(torch.eye(width, device=_device(function))[None])
            values = torch.linalg.svdvals(whole.double())
            norms = values.square().sum(-1)
            return values[:, :SINGULAR_VALUES].cpu().numpy(), norms.cpu().numpy()
        generator = torch.Generator().manual_seed(seed)
        device = _device(function)
        shape = (tokens, NORM_DIRECTIONS, width)
        signs = (torch.randint(0, 2, shape, generator=generator) * 2.0 - 1.0).to(device)
        norms = function.push(signs).double().square().sum(-1).mean(-1)
        block = signs[:, : SINGULAR_VALUES + OVERSAMPLING]
        for _ in range(POWER_STEPS):
            block = function.pull(_orthonormal(function.push(_orthonormal(block))))
        back = function.push(_orthonormal(block))
        values = torch.linalg.svdvals(back.double())[:, :SINGULAR_VALUES]
        return values.cpu().numpy(), norms.cpu().numpy()


def _orthonormal(rows: torch.Tensor) -> torch.Tensor:
    return torch.linalg.qr(rows.transpose(-1, -2))[0].transpose(-1, -2)


def _device(function: ExpertFunction) -> torch.device:
    return function.values().device
