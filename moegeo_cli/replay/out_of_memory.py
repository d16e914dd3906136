"""Recognise out-of-memory errors of all devices."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text
    )
