"""Whether this process belongs to moegeo's command line, or to a user's program.

Changes that cannot be undone, such as settings of the memory allocator, are made only in a
process of moegeo's own.
"""

from __future__ import annotations

_is_own = False


def mark_own_process() -> None:
    """Record that the process belongs to moegeo's command line."""
    global _is_own
    _is_own = True


def is_own_process() -> bool:
    """Whether `mark_own_process` was called."""
    return _is_own
