"""Products between the Jacobians of all pairs of a layer's experts, at the same tokens.

The cost per token and direction is one product with each map of every expert, and E × E dot
products of the results; the null adds one map per expert. Tokens are processed in chunks, so the
memory does not grow with their number.

Legend: T tokens, M directions per token, D width of the input, O of the output, F inner neurons,
E experts, S singular values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from moegeo_cli.expert_functions.functions import ExpertFunction, Experts

BUFFER_BYTES = 128 * 2**20  # memory of a chunk of tokens
# Number of float64 arrays with the products of all pairs that exist at the same time.
PAIR_ARRAYS = 10
# Jacobians are exact if they cost at most this many floating-point operations per layer.
EXACT_OPERATIONS = 2e11
DIRECTIONS = 4
MEAN_DIRECTIONS, MEAN_DIRECTIONS_CALLED = 256, 16
SPECTRUM_TOKENS, SINGULAR_VALUES, OVERSAMPLING, POWER_STEPS = 4, 16, 8, 2
NORM_DIRECTIONS = 32
EXACT_SPECTRUM = 256  # up to this width, singular values are computed from the whole Jacobian
NULL_SEED = 1_000_003  # base of the null's seeds, different from the seeds of directions


@dataclass(frozen=True, slots=True)
class PairProducts:
    """Products at a chunk of tokens.

    `inner` are the products (J_a v)·(J_b v), (T, M, E, E), and `norm` those with a = b, (T, M, E);
    M is 1 if they are exact. `null_inner` are products of each expert (rows) with each disturbed
    one (columns); `null_norm` are those of the disturbed ones with themselves.
    """

    tokens: slice
    inner: np.ndarray
    norm: np.ndarray
    null_inner: np.ndarray
    null_norm: np.ndarray


def is_exact(experts: Experts, tokens: int, directions: int | None) -> bool:
    """Whether a layer's Jacobians are exact: with `--directions 0`, or if they are cheap."""
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
    """Compute the products of all pairs of experts, chunk by chunk.

    Args:
        experts: the layer's experts.
        x_TD: tokens, the same for every expert.
        scale_TE: factor of each expert's copy of a token; None for 1.
        directions: number M of random sign vectors per token; 0 for exact Jacobians; None to choose
            by cost.
        seed: seed of the directions.
        take: called with the products of each chunk.
        buffer: memory of a chunk of tokens, and of the pairs that are formed at once, in bytes; a
            chunk has at least one token. None for `BUFFER_BYTES`.

    Returns:
        M, or 0 if the products are exact.
    """
    tokens, width = x_TD.shape
    count, device = experts.block.experts, x_TD.device
    exact = is_exact(experts, tokens, directions)
    many = 0 if exact else directions or DIRECTIONS
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        outward = int(experts.at(0, x_TD[:1]).values().shape[1])
        copies = 16 if exact else 8  # bytes of both results; exact ones are copied once more
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
                own[:, :, e], other[:, :, e] = experts.at(e, x_ND).push_with_null(v, NULL_SEED + e)
            # Experts are called once per chunk; their pairs are formed in smaller parts.
            for first in range(0, here, part):
                few = slice(first, min(first + part, here))
                place = slice(start + few.start, start + few.stop)
                take(_products(place, own[few], other[few], exact))
    return many


def _products(rows: slice, own: torch.Tensor, other: torch.Tensor, exact: bool) -> PairProducts:
    """Products from results (T, M, E, O): one per direction, or summed over directions if exact."""
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
    """Cosines between the experts' mean Jacobians, each over the expert's own tokens, (E, E).

    Exact for widths up to 256 (16 with autograd); else estimated from that many shared directions.

    Args:
        experts: the layer's experts.
        inputs_of: a function of an expert: its tokens and their weights, or None without tokens.
        seed: seed of the directions.
        buffer: memory of the products that are formed at once, in bytes; None for 16 times
            `BUFFER_BYTES`.

    Returns:
        NaN for an expert without a token.
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
    """Largest singular values and squared Frobenius norm of an expert's Jacobian at a few tokens.

    Exact for widths up to 256. For larger widths, a randomised range finder with two power steps
    gives the singular values, and 32 random directions give the norm.

    Source: Halko, Martinsson and Tropp (2011).

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
