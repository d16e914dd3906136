"""Experts merged or silenced in a model's own weights, and put back.

Inner neurons have no order: two experts that compute the same may hold them in any. Merging
matches them first, by how alike their rows and columns are, so that an average is of what belongs
together.

Legend: D width, O of the output, F inner neurons.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.expert_functions import Experts
from moegeo_cli.replay.expert_layouts import Layout


def match_neurons(layout: Layout, a: int, b: int) -> np.ndarray:
    """For each neuron of expert a, the neuron of b that is most like it, each used once.

    Likeness is the sum of the products of their unit rows (gate, own) and unit columns.

    Args:
        layout: where their weights lie.
        a: an expert.
        b: another.
    """
    parts = [
        *zip(layout.rows(a), layout.rows(b), strict=True),
        (layout.outward[a].T, layout.outward[b].T),
    ]
    likeness = torch.zeros(layout.neurons, layout.neurons)
    for one, other in parts:
        likeness += (_unit(one) @ _unit(other).T).cpu()
    return np.asarray(linear_sum_assignment(likeness.numpy(), maximize=True)[1])


def _unit(rows: torch.Tensor) -> torch.Tensor:
    rows = rows.detach().float()
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-30)


def merge(experts: Experts, a: int, b: int, share: float) -> None:
    """Put the average of two experts, neurons matched, in the place of both.

    Args:
        experts: of one layer.
        a: an expert.
        b: another.
        share: of a in the average, 0 to 1.

    Raises:
        UnsupportedArchitectureError: their weights are not known well enough.
    """
    layout = _require_layout(experts)
    order = torch.from_numpy(match_neurons(layout, a, b)).to(layout.outward[a].device)
    with torch.no_grad():
        ins = [*zip(layout.rows(a), layout.rows(b), strict=True)]
        ins += [*zip(layout.bias_rows(a), layout.bias_rows(b), strict=True)]
        pairs = [(one, other, other[order]) for one, other in ins]
        pairs.append((layout.outward[a], layout.outward[b], layout.outward[b][:, order]))
        if layout.bias_out is not None:
            pairs.append((layout.bias_out[a], layout.bias_out[b], layout.bias_out[b]))
        for one, other, matched in pairs:
            mean = share * one.float() + (1.0 - share) * matched.float()
            one.copy_(mean.to(one.dtype))
            other.copy_(mean.to(other.dtype))


def silence(experts: Experts, expert: int) -> None:
    """Make an expert's output zero; tokens that the router sends to it lose its part.

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
    """Put the weights of these experts back when the block ends.

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
