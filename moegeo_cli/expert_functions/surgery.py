"""Merges or silences experts in a model's own weights, and restores the weights.

Inner neurons have no order: two experts that compute the same may hold them in any. Nor has a
neuron a sign where its inner function is odd in its own row, as SwiGLU is in up: row and column may
change it together. Merging matches neurons first, by how alike their rows and columns are, so that
an average is of what belongs together.

Legend: D width, O of the output, F inner neurons.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.expert_functions.functions import Experts
from moegeo_cli.expert_functions.layouts import Layout


def match_neurons(layout: Layout, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """For each neuron of expert a, the most similar neuron of b; each is used once.

    Likeness is the sum of the products of their unit rows (gate, own) and unit columns; where a
    neuron's own row and its column may change their sign together, of that sign which makes it
    larger.

    Args:
        layout: where their weights lie.
        a: an expert.
        b: another.

    Returns:
        The places in b, and the signs, shape (F,) each.
    """
    *gates, own = zip(layout.rows(a), layout.rows(b), strict=True)
    columns = (layout.outward[a].T, layout.outward[b].T)
    likeness_FF = torch.zeros(layout.neurons, layout.neurons)
    signed_FF = sum((_likeness(*pair) for pair in (own, columns)), torch.zeros_like(likeness_FF))
    for pair in gates:
        likeness_FF += _likeness(*pair)
    odd = _is_odd(layout)
    likeness_FF += signed_FF.abs() if odd else signed_FF
    order = np.asarray(linear_sum_assignment(likeness_FF.numpy(), maximize=True)[1])
    signs = np.ones(layout.neurons, dtype=np.float32)
    if odd:
        signs[signed_FF[torch.arange(len(order)), torch.from_numpy(order)].numpy() < 0] = -1.0
    return order, signs


def _likeness(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Cosines between all pairs of rows, (F, F)."""
    return (_unit(one) @ _unit(other).T).cpu()


def _is_odd(layout: Layout) -> bool:
    """Whether a neuron's value changes its sign if its own row does."""
    generator = torch.Generator().manual_seed(0)
    rows = 2 * layout.neurons if layout.gated else layout.neurons
    # Wide enough that clamps are met.
    pre_NR = 10.0 * torch.randn(8, rows, generator=generator)
    own = slice(1, None, 2) if layout.interleaved else slice(rows - layout.neurons, None)
    turned_NR = pre_NR.clone()
    turned_NR[:, own] = -pre_NR[:, own]
    with torch.no_grad():
        return bool(torch.allclose(layout.inner(turned_NR), -layout.inner(pre_NR), atol=1e-5))


def _unit(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.detach().float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def merge(experts: Experts, a: int, b: int, share: float) -> None:
    """Replace two experts by their average, after matching their neurons.

    Args:
        experts: of one layer.
        a: an expert.
        b: another.
        share: of a in the average, 0 to 1.

    Raises:
        UnsupportedArchitectureError: their weights are not known well enough.
    """
    layout = _require_layout(experts)
    order, signs_F = (
        torch.from_numpy(part).to(layout.outward[a].device) for part in match_neurons(layout, a, b)
    )
    with torch.no_grad():
        pairs = []
        for rows in (layout.rows, layout.bias_rows):
            roles = list(zip(rows(a), rows(b), strict=True))
            pairs += [(one, other, other[order]) for one, other in roles[:-1]]
            for one, other in roles[-1:]:  # a neuron's own row, or bias
                signs = signs_F.reshape(-1, *[1] * (other.ndim - 1)).to(other)
                pairs.append((one, other, other[order] * signs))
        turned = layout.outward[b][:, order] * signs_F.to(layout.outward[b])
        pairs.append((layout.outward[a], layout.outward[b], turned))
        if layout.bias_out is not None:
            pairs.append((layout.bias_out[a], layout.bias_out[b], layout.bias_out[b]))
        for one, other, matched in pairs:
            mean = share * one.float() + (1.0 - share) * matched.float()
            one.copy_(mean.to(one.dtype))
            other.copy_(mean.to(other.dtype))


def silence(experts: Experts, expert: int) -> None:
    """Set an expert's output to zero. Tokens that the router sends to it lose its part.

    Raises:
        UnsupportedArchitectureError: its weights are not known well enough.
    """
    layout = _require_layout(experts)
    with torch.no_grad():
        layout.outward[expert].zero_()
        if layout.bias_out is not None:
            layout.bias_out[expert].zero_()


def _require_layout(experts: Experts) -> Layout:
    if experts.layout is None:
        raise UnsupportedArchitectureError(
            f"the weights of the experts beside {experts.block.router.path} are not in a known form"
        )
    return experts.layout


@contextlib.contextmanager
def restored(chosen: Sequence[tuple[Experts, int]]) -> Iterator[None]:
    """Restore the weights of these experts when the block ends.

    Args:
        chosen: experts by layer and index.
    """
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    for experts, expert in chosen:
        layout = _require_layout(experts)
        kept += [(s[expert], s[expert].detach().clone()) for s in layout.stacks]
    try:
        yield
    finally:
        with torch.no_grad():
            for live, copy in kept:
                live.copy_(copy)
