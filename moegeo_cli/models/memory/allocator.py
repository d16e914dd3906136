"""What glibc's allocator does with freed blocks: it keeps them where memory is not short.

A block that is returned to the system is given back page by page, and cleared, for the next tensor.
At 48 routers x 128 experts that takes as long as a third of the model's own pass. Where a bound
must hold, blocks are returned at once: else a layer that was let go would still count.

In a user's own process nothing is set: the settings cannot be read, so not put back either.
"""

from __future__ import annotations

import contextlib
import ctypes

from moegeo_cli.process import is_own_process

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
SMALL, LARGEST = 2**17, 2**25  # bytes: glibc's first bound of a mapped block, and its largest
KEPT = 2**30  # bytes that stay free at the end of the heap
FREED = 0.3  # of a batch: freed blocks that an allocator keeps, where it keeps any


def freed_bytes(batch: int, *, kept: bool = False) -> int:
    """Bytes of freed blocks that the allocator may keep from a batch of this size.

    Args:
        batch: bytes of the batch.
        kept: whether `keep_freed_blocks` was called.
    """
    return int(FREED * batch) if kept or not is_own_process() else 0


def return_freed_blocks() -> None:
    """Return freed blocks to the system at once."""
    _set({M_MMAP_THRESHOLD: SMALL})


def keep_freed_blocks() -> None:
    """Keep freed blocks of less than 32 MiB for the next tensors."""
    _set({M_MMAP_THRESHOLD: LARGEST, M_TRIM_THRESHOLD: KEPT})


def _set(options: dict[int, int]) -> None:
    if not is_own_process():
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another allocator
        for option, size in options.items():
            ctypes.CDLL(None).mallopt(option, size)
