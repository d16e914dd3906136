"""Merge or silence experts in a model's weights, and restore the weights afterwards.

Equal functions can have their inner neurons in different orders. If the inner function is odd in a
neuron's own row, as SwiGLU is in up, the signs of row and column can differ too. Merging therefore
matches the neurons of both experts first, by the similarity of their rows and columns.

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
    """Match the neurons of expert b one to one with those of expert a, by similarity.

    Similarity is the sum of the cosines of the rows and of the columns. If the signs of a neuron's
    own row and column may change together, the sign with the larger similarity is used.

    Args:
        layout: the layout of the experts' weights.
        a: an expert.
        b: another expert.

    Returns:
        For each neuron of a, the index of its partner in b, and the partner's sign, both (F,).
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
    """Whether the inner function is odd in a neuron's own row (up, or the only row)."""
    generator = torch.Generator().manual_seed(0)
    rows = 2 * layout.neurons if layout.gated else layout.neurons
    # Values large enough to reach clamps.
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
        experts: the experts of one layer.
        a: an expert.
        b: another expert.
        share: weight of a in the average, 0 to 1.

    Raises:
        UnsupportedArchitectureError: the experts have no verified layout.
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
    """Set an expert's output to zero. Tokens that are routed to it lose its contribution.

    Raises:
        UnsupportedArchitectureError: the experts have no verified layout.
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
def restoring_weights(chosen: Sequence[tuple[Experts, int]]) -> Iterator[None]:
    """Context manager: restore the weights of these experts at its end.

    Args:
        chosen: (experts of a layer, number of an expert) pairs.

    Raises:
        UnsupportedArchitectureError: the experts have no verified layout.
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
