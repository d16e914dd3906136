"""Whether this process is moegeo's own, as the command line's is, or a user's.

What cannot be undone, as the allocator's settings, is changed in a process of its own alone.
"""

from __future__ import annotations

_ours = False


def take_process() -> None:
    """The command line says that the process is its own."""
    global _ours
    _ours = True


def is_ours() -> bool:
    """Whether it was said."""
    return _ours
