r"""Experts as differentiable functions: by a verified closed form, or by autograd.

Nearly every expert is two linear maps around an elementwise inner function g:
:math:`f(x) = W_o\,g(W_i x + b_i) + b_o`, with g(gate, up) = act(gate)·up (SwiGLU), possibly with
clamps, or g = act (GELU, ReLU). The Jacobian is :math:`W_o\,\Sigma\,W_i` with the slopes Σ of g,
which one backward pass through g gives. Candidates for the layout of the weights and for g are
compared with the model's own module, in values and derivatives; only one that agrees is used.

Legend: N tokens, M directions per token, D width of the input, O of the output, F inner neurons,
R rows of W_i (2F with a gate), E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.expert_functions.layouts import Layout, possible_layouts

CHECKED_TOKENS = 4
# Largest allowed relative difference from the model's own module, in float32 and in half precision.
AGREEMENT, AGREEMENT_HALF = 1e-4, 0.05


class ExpertFunction(Protocol):
    """One expert at given tokens x: its values, and products with its Jacobian J(x)."""

    def values(self) -> torch.Tensor:
        """f(x), shape (N, O)."""

    def push(self, v_NMD: torch.Tensor) -> torch.Tensor:
        """J(x) v, shape (N, M, O). If N of `v_NMD` is 1, all tokens share the directions."""

    def pull(self, u_NMO: torch.Tensor) -> torch.Tensor:
        """J(x)ᵀ u, shape (N, M, D)."""

    def push_with_null(self, v_NMD: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """J(x) v of this expert, and of its disturbed version, both (N, M, O).

        In the disturbed version the outputs of the inner neurons are permuted and get random
        signs. It is the empirical null of alignment.
        """

    def mean_push(self, weights_N: torch.Tensor, v_MD: torch.Tensor) -> torch.Tensor:
        """Products with the mean Jacobian over tokens, weighted by `weights_N`, shape (M, O)."""


class NeuronExpert:
    """The closed form of one expert at tokens x, in float32."""

    def __init__(self, layout: Layout, expert: int, x_ND: torch.Tensor) -> None:
        self.layout = layout
        parts = [p[expert].float() for p in layout.inward]
        self.in_RD = parts[0] if len(parts) == 1 else torch.cat(parts)
        self.out_OF = layout.outward[expert].float()
        self.bias_O = None if layout.bias_out is None else layout.bias_out[expert].float()
        pre_NR = x_ND.float() @ self.in_RD.T
        if layout.bias_in:
            pre_NR = pre_NR + torch.cat([bias[expert].float() for bias in layout.bias_in])
        with torch.enable_grad():
            pre_NR = pre_NR.detach().requires_grad_(True)
            inner_NF = layout.inner(pre_NR)
            [self.slopes_NR] = torch.autograd.grad(inner_NF.sum(), pre_NR)
        self.inner_NF = inner_NF.detach()

    def values(self) -> torch.Tensor:
        """See `ExpertFunction`."""
        found = self.inner_NF @ self.out_OF.T
        return found if self.bias_O is None else found + self.bias_O

    def push(self, v_NMD: torch.Tensor) -> torch.Tensor:
        """See `ExpertFunction`."""
        return self._neurons(v_NMD) @ self.out_OF.T

    def push_with_null(self, v_NMD: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ExpertFunction`."""
        moved_NMF = self._neurons(v_NMD)
        order, signs = _random_permutation(self.layout.neurons, seed, moved_NMF.device)
        other_NMF = moved_NMF[..., order] * signs
        return moved_NMF @ self.out_OF.T, other_NMF @ self.out_OF.T

    def _neurons(self, v_NMD: torch.Tensor) -> torch.Tensor:
        """The derivative of the inner neurons along directions, shape (N, M, F)."""
        return self._fold(v_NMD @ self.in_RD.T * self.slopes_NR[:, None])

    def pull(self, u_NMO: torch.Tensor) -> torch.Tensor:
        """See `ExpertFunction`."""
        back_NMF = u_NMO @ self.out_OF
        if self.layout.gated:
            both = [back_NMF, back_NMF]
            stacked = torch.stack(both, -1).flatten(-2) if self._alternate else torch.cat(both, -1)
        else:
            stacked = back_NMF
        return (stacked * self.slopes_NR[:, None]) @ self.in_RD

    def mean_push(self, weights_N: torch.Tensor, v_MD: torch.Tensor) -> torch.Tensor:
        """See `ExpertFunction`; the slopes are averaged, because the Jacobian is linear in them."""
        slopes_R = weights_N @ self.slopes_NR / weights_N.sum()
        return self._fold(v_MD @ self.in_RD.T * slopes_R) @ self.out_OF.T

    @property
    def _alternate(self) -> bool:
        return self.layout.interleaved and len(self.layout.inward) == 1

    def _fold(self, rows: torch.Tensor) -> torch.Tensor:
        if not self.layout.gated:
            return rows
        if self._alternate:
            return rows[..., ::2] + rows[..., 1::2]
        return rows[..., : self.layout.neurons] + rows[..., self.layout.neurons :]


class CalledExpert:
    """One expert at tokens x, by autograd through the model's own module."""

    def __init__(self, block: ExpertBlock, expert: int, x_ND: torch.Tensor) -> None:
        dtype = next((p.dtype for p in block.module.parameters()), x_ND.dtype)
        self.block, self.expert, self.x_ND = block, expert, x_ND.to(dtype)

    def values(self) -> torch.Tensor:
        """See `ExpertFunction`."""
        with torch.no_grad():
            return self.block.call(self.expert, self.x_ND).float()

    def push_with_null(self, v_NMD: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `ExpertFunction`; the neurons are not known, so the outputs are permuted instead."""
        moved = self.push(v_NMD)
        order, signs = _random_permutation(moved.shape[-1], seed, moved.device)
        return moved, moved[..., order] * signs

    def mean_push(self, weights_N: torch.Tensor, v_MD: torch.Tensor) -> torch.Tensor:
        """See `ExpertFunction`."""
        moved_NMO = self.push(v_MD[None])
        return torch.einsum("n,nmo->mo", weights_N / weights_N.sum(), moved_NMO)

    def push(self, v_NMD: torch.Tensor) -> torch.Tensor:
        """See `ExpertFunction`; two reverse passes, as not every operation has forward mode."""
        x, flat = self._repeat(v_NMD)
        with torch.enable_grad():
            y = self.block.call(self.expert, x)
            dummy = torch.zeros_like(y, requires_grad=True)
            [back] = torch.autograd.grad(y, x, dummy, create_graph=True)
            [forward] = torch.autograd.grad(back, dummy, flat)
        return forward.float().reshape(len(self.x_ND), v_NMD.shape[1], -1)

    def pull(self, u_NMO: torch.Tensor) -> torch.Tensor:
        """See `ExpertFunction`."""
        x, flat = self._repeat(u_NMO)
        with torch.enable_grad():
            [back] = torch.autograd.grad(self.block.call(self.expert, x), x, flat)
        return back.float().reshape(len(self.x_ND), u_NMO.shape[1], -1)

    def _repeat(self, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token repeated for each direction, and the directions in the module's dtype."""
        x = self.x_ND.repeat_interleave(v.shape[1], 0).detach().requires_grad_(True)
        return x, v.expand(len(self.x_ND), *v.shape[1:]).reshape(-1, v.shape[-1]).to(x.dtype)


@dataclass(frozen=True, slots=True)
class Experts:
    """A block's experts as functions. `layout` is None if no closed form was verified."""

    block: ExpertBlock
    layout: Layout | None
    width: int

    def at(self, expert: int, x_ND: torch.Tensor) -> ExpertFunction:
        """One expert as a function at tokens."""
        if self.layout is not None:
            return NeuronExpert(self.layout, expert, x_ND)
        return CalledExpert(self.block, expert, x_ND)

    @property
    def method(self) -> str:
        """How the Jacobian is computed, in words."""
        if self.layout is None:
            return "autograd through the model's own module"
        return f"closed form ({self.layout.name}), verified against autograd"


def open_experts(block: ExpertBlock, x_ND: torch.Tensor) -> Experts:
    """Open a block's experts with the first closed form that agrees with the model's own module.

    Args:
        block: the experts.
        x_ND: inputs of the experts; the first few are used for the comparison.

    Returns:
        The experts; without a layout if no closed form agrees.
    """
    width = int(x_ND.shape[1])
    references = [
        _ReferenceValues(block, e, x_ND[:CHECKED_TOKENS]) for e in sorted({0, block.experts - 1})
    ]
    for layout in possible_layouts(block, width):
        if all(one.agrees(layout) for one in references):
            return Experts(block, layout, width)
    return Experts(block, None, width)


class _ReferenceValues:
    """Values and derivatives of one expert at a few tokens, by the model's own module."""

    def __init__(self, block: ExpertBlock, expert: int, x_ND: torch.Tensor) -> None:
        called = CalledExpert(block, expert, x_ND)
        self.expert, self.x_ND = expert, called.x_ND
        self.limit = AGREEMENT_HALF if called.x_ND.dtype.itemsize < 4 else AGREEMENT
        self.values_NO = called.values()
        generator = torch.Generator().manual_seed(0)
        shape = self.values_NO.shape
        self.u = torch.randn(*shape, generator=generator).to(self.values_NO)[:, None]
        self.v = torch.randn(len(x_ND), 1, x_ND.shape[1], generator=generator).to(self.values_NO)
        self.pulled, self.pushed = called.pull(self.u), called.push(self.v)

    def agrees(self, layout: Layout) -> bool:
        """Whether a closed form gives the same values and derivatives, within the limit."""
        try:
            form = NeuronExpert(layout, self.expert, self.x_ND)
            values_NO = form.values()
            return (
                values_NO.shape == self.values_NO.shape
                and _close(values_NO, self.values_NO, self.limit)
                and _close(form.pull(self.u), self.pulled, self.limit)
                and _close(form.push(self.v), self.pushed, self.limit)
            )
        except (RuntimeError, TypeError, ValueError, IndexError):
            return False


def _random_permutation(
    width: int, seed: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random permutation of `width` entries, and random signs ±1."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(width, generator=generator)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1.0
    return order.to(device), signs.to(device)


def _close(a: torch.Tensor, b: torch.Tensor, limit: float) -> bool:
    return bool((a - b).norm() <= limit * b.norm().clamp_min(1e-30))
