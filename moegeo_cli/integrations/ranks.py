"""Processes of a distributed training: find rank 0, and send its answer to all ranks."""

from __future__ import annotations

from typing import Any, TypeVar

Answer = TypeVar("Answer")


def is_first() -> bool:
    """Whether this process is rank 0, or the only process."""
    group = _group()
    return group is None or group.get_rank() == 0


def from_first(answer: Answer) -> Answer:
    """The answer of rank 0, in every process. All ranks must call it, and wait for rank 0."""
    group = _group()
    if group is None:
        return answer
    held = [answer]
    group.broadcast_object_list(held, src=0)
    return held[0]


def _group() -> Any:
    """torch.distributed if several processes train; else None."""
    import torch.distributed as group

    ready = group.is_available() and group.is_initialized()
    return group if ready and group.get_world_size() > 1 else None
