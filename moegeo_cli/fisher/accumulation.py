"""Sums of squared row gradients over tokens, kept in total and by group of sequences.

The total is exact. The group sums serve the intervals: exact while all routers together
stay within `GROUP_BYTES`, beyond that as traces and a seeded random projection.

Legend: N tokens of a batch, E experts, D router input width, G groups, P projected width.
"""

from __future__ import annotations

import numpy as np
import torch

GROUP_BYTES = 256 * 2**20
PROJECTED_WIDTH = 256


class FisherAccumulator:
    """Adds up Σ_t a_te² x_td² of one router, one kind and one sample unit.

    Products are float32, sums float64, so that batches, shards and ranks add up.

    Args:
        experts: E.
        width: D.
        groups: G.
        exact_groups: keep each group's (E, D) sum; else its trace and a projection.
        device: where the sums live.
        seed: of the projection.
    """

    def __init__(
        self,
        experts: int,
        width: int,
        groups: int,
        *,
        exact_groups: bool,
        device: torch.device,
        seed: int = 0,
    ) -> None:
        self.exact_groups = exact_groups
        # float64 sums, except where the device has none
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.total_ED = torch.zeros(experts, width, dtype=wide, device=device)
        columns = width if exact_groups else min(PROJECTED_WIDTH, width)
        self.group_sums_GEP = torch.zeros(groups, experts, columns, dtype=wide, device=device)
        self._trace_GE = torch.zeros(groups, experts, dtype=wide, device=device)
        self._projection_DP: torch.Tensor | None = None
        if not exact_groups:
            generator = torch.Generator().manual_seed(seed)
            matrix = torch.randn(width, columns, generator=generator) / columns**0.5
            self._projection_DP = matrix.to(device)

    def add(
        self, squares_NE: torch.Tensor, x2_ND: torch.Tensor, spans: list[tuple[int, int, int]]
    ) -> None:
        """Add tokens whose rows lie group by group.

        Args:
            squares_NE: squared derivatives with respect to the logits, float32.
            x2_ND: squared router inputs, float32.
            spans: (group, first row, row after the last) of each run of one group's tokens.
        """
        for group, start, stop in spans:
            self.add_sum(squares_NE[start:stop].T @ x2_ND[start:stop], group)

    def add_sum(self, sum_ED: torch.Tensor, group: int) -> None:
        """Add a finished sum over some of a group's tokens, shape (E, D)."""
        wide = sum_ED.to(self.total_ED.dtype)
        if self.exact_groups:
            self.group_sums_GEP[group] += wide
        else:
            assert self._projection_DP is not None
            self.total_ED += wide
            self._trace_GE[group] += wide.sum(-1)
            self.group_sums_GEP[group] += (sum_ED @ self._projection_DP).to(wide.dtype)

    def sums(self) -> list[torch.Tensor]:
        """The sums themselves, so that those of other ranks can be added to them."""
        if self.exact_groups:
            return [self.group_sums_GEP]
        return [self.total_ED, self._trace_GE, self.group_sums_GEP]

    def totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(total_ED, group_sums_GEP, trace_GE) as float64 arrays."""
        total, trace = self.total_ED, self._trace_GE
        if self.exact_groups:
            total, trace = self.group_sums_GEP.sum(0), self.group_sums_GEP.sum(-1)
        return (
            total.double().cpu().numpy(),
            self.group_sums_GEP.double().cpu().numpy(),
            trace.double().cpu().numpy(),
        )


def exact_groups_fit(shapes: list[tuple[int, int]], kinds: int, groups: int) -> bool:
    """Whether the group sums of all routers fit into `GROUP_BYTES`, as float64.

    Args:
        shapes: (E, D) of each router.
        kinds: Fisher kinds and units kept at once.
        groups: G.
    """
    return 8 * kinds * groups * sum(e * d for e, d in shapes) <= GROUP_BYTES


def sum_bytes(experts: int, width: int, groups: int, kinds: int, *, exact_groups: bool) -> int:
    """Bytes of one router's accumulators, including the copy that is made at the end."""
    columns = width if exact_groups else min(PROJECTED_WIDTH, width)
    return 2 * 8 * kinds * experts * (width + groups * (columns + 1))
