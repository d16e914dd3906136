"""The processes of a training: which one is the first, and what all of them hear from it."""

from __future__ import annotations

from typing import Any, TypeVar

Answer = TypeVar("Answer")


def is_first() -> bool:
    """Whether this process is the first of its training, or its only one."""
    group = _group()
    return group is None or group.get_rank() == 0


def from_first(answer: Answer) -> Answer:
    """The answer of the first process. All others wait for it here."""
    group = _group()
    if group is None:
        return answer
    held = [answer]
    group.broadcast_object_list(held, src=0)
    return held[0]


def _group() -> Any:
    """torch.distributed where several processes train; else None."""
    import torch.distributed as group

    ready = group.is_available() and group.is_initialized()
    return group if ready and group.get_world_size() > 1 else None
