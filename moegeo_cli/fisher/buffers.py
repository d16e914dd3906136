"""Memory that one batch after another computes in.

Tensors of a few megabytes that come and go are handed back to the system and cleared for the next
use, page by page, which takes longer than the arithmetic in them.
"""

from __future__ import annotations

import torch


class Buffers:
    """One tensor a name; what was in it is overwritten by the next user of the name."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """A tensor of the shape and on the device of another one, its content undefined.

        Args:
            name: of the use.
            like: whose shape and device.
            dtype: of the numbers.
        """
        held = self._held.get((name, dtype))
        if held is None or held.numel() < like.numel() or held.device != like.device:
            held = torch.empty(like.numel(), dtype=dtype, device=like.device)
            self._held[name, dtype] = held
        return held[: like.numel()].view(like.shape)
