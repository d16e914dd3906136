"""Which tokens of the probe are kept by value: the same for every checkpoint and router.

Legend: T tokens of the probe, E experts, K experts chosen per token, D router input width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Tokens whose logits and choices are kept: at most so many, and at least so many where those of
# all routers together would take more than these bytes.
SAMPLE_TOKENS, LEAST_TOKENS, SAMPLE_BYTES = 4096, 1024, 64 * 2**20
# Router inputs are wide: fewer are kept, and never more bytes than this over all routers.
SAMPLE_INPUTS, SAMPLE_INPUT_BYTES = 512, 32 * 2**20


def sample_size(shapes: Sequence[tuple[int, int]]) -> int:
    """Number of tokens whose logits, choices and combine weights are kept.

    Args:
        shapes: (E, K) of each router.
    """
    token_bytes = sum(4 * experts + 8 * slots for experts, slots in shapes)
    return max(LEAST_TOKENS, min(SAMPLE_TOKENS, SAMPLE_BYTES // max(1, token_bytes)))


def thin_for_inputs(rows: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """The rows whose router inputs are kept as well.

    Args:
        rows: those whose logits are kept.
        widths: D of each router.
    """
    count = max(16, min(SAMPLE_INPUTS, SAMPLE_INPUT_BYTES // (4 * sum(widths))))
    return rows[:: -(-len(rows) // count)]


def sample_rows(tokens: int, count: int, seed: int) -> np.ndarray:
    """A random subset of the probe's rows, in order.

    Args:
        tokens: T.
        count: how many rows; all, if there are no more.
        seed: of the draw.
    """
    if tokens <= count:
        return np.arange(tokens)
    return np.sort(np.random.default_rng(seed).choice(tokens, count, replace=False))
