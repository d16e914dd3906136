"""Ctrl-C that is not lost.

Python raises KeyboardInterrupt wherever it happens to be, and some places of the libraries that
are imported drop it: the work would go on as if nothing had been said. It is remembered here, and
raised again where moegeo next comes by.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_pending: list[int] = []


@contextlib.contextmanager
def remembered_interrupts() -> Iterator[None]:
    """While the command line is at work; elsewhere than in the main thread nothing is done."""
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
    """Raise an interrupt that was dropped.

    Raises:
        KeyboardInterrupt: there was one.
    """
    if _pending:
        raise KeyboardInterrupt


def _remember(number: int, frame: FrameType | None) -> None:
    _pending.append(number)
    raise KeyboardInterrupt
