"""Set whether glibc's allocator keeps freed blocks or returns them to the system.

The system clears the pages of a new block one by one. If every block is returned, that takes as
long as a third of the model's forward pass, at 48 routers x 128 experts. So blocks are kept if
memory is plentiful. If a memory bound must hold, they are returned at once: otherwise a released
layer would still count as used.

Nothing is set if moegeo runs inside a user's own process, because the previous settings cannot be
read and restored.
"""

from __future__ import annotations

import contextlib
import ctypes

from moegeo_cli.process import is_own_process

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL, LARGEST = 2**17, 2**25  # bytes: default and largest value of M_MMAP_THRESHOLD
KEPT = 2**30  # bytes that may stay free at the end of the heap
FREED = 0.3  # freed blocks that the allocator keeps if it keeps any, as a share of a batch


def freed_bytes(batch: int, *, kept: bool = False) -> int:
    """Bytes of freed blocks that the allocator may keep after a batch.

    Args:
        batch: bytes of the batch's activations and logits.
        kept: whether `keep_freed_blocks` was called.
    """
    return int(FREED * batch) if kept or not is_own_process() else 0


def return_freed_blocks() -> None:
    """From now on, return freed blocks to the system at once."""
    _set({M_MMAP_THRESHOLD: SMALL})


def keep_freed_blocks() -> None:
    """From now on, keep freed blocks of less than 32 MiB for later tensors."""
    _set({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: KEPT})


def _set(options: dict[int, int]) -> None:
    if not is_own_process():
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc
        for option, size in options.items():
            ctypes.CDLL(None).mallopt(option, size)
