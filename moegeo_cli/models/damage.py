"""Find damaged expert weights: NaN, infinity, rows of zeros, or several experts with equal weights.

transformers loads such weights without an error. Finding them reads each expert's weights about
once, which costs less than a forward pass.

Legend: E experts, R rows and C columns of a weight matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moegeo_cli.routers.finding import EXPERTS_CLASS, Router

Weights = torch.Tensor | Sequence[torch.Tensor]  # (E, R, C), or one matrix per expert
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Damage:
    """The damaged experts of one router, by number.

    Attributes:
        nonfinite: experts with a NaN or infinite weight.
        zero: experts with a row of zeros in a weight.
        identical: groups of two or more experts whose weights are equal, bit for bit.
    """

    nonfinite: tuple[int, ...]
    zero: tuple[int, ...]
    identical: tuple[tuple[int, ...], ...] = ()


def find_damage(router: Router) -> Damage | None:
    """The damaged experts of a router; None if their weights are not all in memory.

    A row that is zero in every expert is padding, not damage, unless the whole weight is zero.
    """
    nonfinite: set[int] = set()
    zero: set[int] = set()
    groups: list[tuple[int, ...]] | None = None  # experts that are equal in all weights so far
    for weights in _matrices(router):
        if weights is None:
            return None
        rows_ER = _row_maxima(weights)
        if groups is None:
            groups = [tuple(range(len(weights)))]
        groups = _split_groups(groups, weights)
        nonfinite |= _indices(~torch.isfinite(rows_ER).all(1))
        empty_ER = rows_ER == 0
        padding_R = empty_ER.all(0) & ~empty_ER.all()
        zero |= _indices((empty_ER & ~padding_R).any(1))
    if groups is None:
        return None
    lost = nonfinite | zero  # experts of zeros are equal, but are reported as zero only
    identical = tuple(group for group in groups if not lost.intersection(group))
    return Damage(tuple(sorted(nonfinite)), tuple(sorted(zero)), identical)


def _row_maxima(weights: Weights) -> torch.Tensor:
    """The largest absolute value of each row, shape (E, R)."""
    if isinstance(weights, torch.Tensor):
        return torch.linalg.vector_norm(weights, torch.inf, dim=-1)
    return torch.stack([torch.linalg.vector_norm(w, torch.inf, dim=-1) for w in weights])


def _checksums(weights: Weights) -> list[int]:
    """The sum of each expert's weights, with their bits read as integers."""
    if isinstance(weights, torch.Tensor):
        found: list[int] = weights.view(BITS[weights.element_size()]).sum((1, 2)).tolist()
        return found
    return [int(w.view(BITS[w.element_size()]).sum()) for w in weights]


def _split_groups(groups: list[tuple[int, ...]], weights: Weights) -> list[tuple[int, ...]]:
    """Split groups of equal experts by one more weight. Groups of a single expert are dropped.

    Equal tensors have equal checksums, so only experts with the same checksum are compared in full.
    """
    found = []
    sums = _checksums(weights)
    for group in groups:
        by_sum: dict[int, list[int]] = {}
        for expert in group:
            if expert < len(weights):
                by_sum.setdefault(sums[expert], []).append(expert)
        for candidates in by_sum.values():
            while len(candidates) > 1:
                first = weights[candidates[0]]
                equal = [e for e in candidates if torch.equal(weights[e], first)]
                candidates = [e for e in candidates if e not in equal]
                if len(equal) > 1:
                    found.append(tuple(equal))
                if not equal:  # NaN is unequal to itself
                    break
    return sorted(found)


def _matrices(router: Router) -> Iterator[Weights | None]:
    """Each weight as one matrix per expert; None if this process does not hold all of it."""
    for name, child in router.parent.named_children():
        kind = type(child).__name__
        routed = name == "experts" or (EXPERTS_CLASS.search(kind) and "shared" not in name)
        if child is router.module or not routed:
            continue
        if any(hasattr(w, "device_mesh") for w in child.parameters()):  # split among ranks
            yield None
            continue
        for weights in _expert_matrices(child, router.experts):
            one = [weights] if isinstance(weights, torch.Tensor) else weights
            if any(w.is_meta for w in one):
                yield None
                continue
            yield weights


def _expert_matrices(experts: nn.Module, count: int) -> Iterator[Weights]:
    """Each weight as one matrix per expert, whether fused or not. Biases are left out."""
    single = [m for m in experts.children() if any(True for _ in m.parameters())]
    if len(single) == 1:
        yield from _expert_matrices(single[0], count)
    elif single:
        tables = [dict(module.named_parameters()) for module in single]
        for name in tables[0]:
            weights = [table[name].detach() for table in tables if name in table]
            if weights[0].ndim == 2 and len({w.shape for w in weights}) == 1:
                yield weights
    fused = [w.detach() for w in experts.parameters(recurse=False) if w.is_floating_point()]
    # Experts without parameters (identity) may have an entry in one weight and none in another.
    working = min((len(w) for w in fused if w.ndim == 3), default=0)
    for weight in fused:
        if weight.ndim == 3:
            yield weight[: min(working, count)]
        elif weight.ndim == 2 and len(weight) > count and not len(weight) % count:
            yield weight.reshape(count, -1, weight.shape[1])


def _indices(flags_E: torch.Tensor) -> set[int]:
    return set(flags_E.nonzero().flatten().tolist())
