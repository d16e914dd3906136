"""Keeps Ctrl-C from being lost.

Python raises KeyboardInterrupt at any point of the program, and some libraries catch and drop it:
the work would go on. This module remembers the signal, and `raise_pending` raises it again.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_pending: list[int] = []


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[None]:
    """Remember interrupts during a block. Outside the main thread it does nothing."""
    _pending.clear()
    try:
        before = signal.signal(signal.SIGINT, _remember)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        _pending.clear()


def raise_pending() -> None:
    """Raise an interrupt that a library dropped.

    Raises:
        KeyboardInterrupt: an interrupt was remembered.
    """
    if _pending:
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _pending.append(number)
    raise KeyboardInterrupt
