"""Processes that share a probe: they meet, hear what to do, fail together and end together.

Rank 0 measures as a single process does and tells the others what to load and replay. An error
of any rank is raised on all of them, so that all stand at the same place again; ranks that lose
each other end instead of waiting.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Before any group exists: its functions take the group that is there at their import as the
# default of an argument. That keeps the group's threads alive to the end of the process, which
# they can abort; transformers imports it with some models.
import torch.distributed.nn.functional
from torch.distributed.rendezvous import rendezvous

from moegeo_cli import errors
from moegeo_cli.errors import MoegeoError, ResourceError, UsageError

Result = TypeVar("Result")
# Ranks that never come are missed soon. A pass may take hours on a CPU, and a process that dies
# is noticed at once, since its connections close.
MEETING, WAITING = timedelta(minutes=5), timedelta(hours=2)
BUCKET_BYTES = 64 * 2**20


@dataclass(slots=True)
class Ranks:
    """One process among several that share a probe.

    Args:
        rank: which one, from 0; rank 0 alone measures, keeps and reports.
        world: how many there are.
        local_rank: which one on this machine: its CUDA device.
        share_probe: each replays its share of the probe; else all replay the whole probe, each with
            its part of the model.
        whole_process: the process ends with the command, so that nothing of the groups that a split
            model makes is left: their threads would outlive the connections.
    """

    rank: int
    world: int
    local_rank: int
    share_probe: bool = True
    whole_process: bool = False
    _agreed: BaseException | None = None

    @classmethod
    def connect(
        cls,
        rank: int,
        world: int,
        local_rank: int,
        *,
        meeting: timedelta = MEETING,
        waiting: timedelta = WAITING,
    ) -> Ranks:
        """Meet the other ranks at the address that torch.distributed's variables name.

        Raises:
            ResourceError: they do not come.
        """
        cuda = local_rank < torch.cuda.device_count()
        try:
            store, _, _ = next(rendezvous("env://", rank, world, timeout=meeting))
            if cuda:
                torch.cuda.set_device(local_rank)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=store, rank=rank, world_size=world, timeout=waiting,
            )  # fmt: skip
        except (RuntimeError, ValueError, OSError) as error:
            raise ResourceError(
                f"rank {rank} of {world} does not reach the others",
                found=_first_line(error),
                hint="start all ranks with torchrun, or unset WORLD_SIZE for a single process",
            ) from error
        return cls(rank, world, local_rank)

    def device(self, name: str) -> str:
        """The device of this rank, of those that `name` means.

        Raises:
            UsageError: one device for all ranks.
            ResourceError: no CUDA device is left for this rank.
        """
        kind = name
        if name == "auto":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
        if kind not in ("cpu", "cuda"):
            raise UsageError(
                "under torchrun each rank takes a device of its own",
                found=f"--device {name}",
                hint="use --device auto, cuda or cpu",
            )
        if kind == "cuda" and self.local_rank >= torch.cuda.device_count():
            raise ResourceError(
                f"rank {self.rank} has no CUDA device of its own",
                found=f"local rank {self.local_rank}, CUDA devices {torch.cuda.device_count()}",
                hint="start as many ranks a machine as it has devices, or use --device cpu",
            )
        return f"cuda:{self.local_rank}" if kind == "cuda" else "cpu"

    def tell(self, order: str, **details: Any) -> None:
        """Rank 0 says what comes next."""
        self._broadcast(json.dumps({"order": order, **details}).encode())

    def hear(self) -> dict[str, Any]:
        """What rank 0 wants next."""
        found: dict[str, Any] = json.loads(self._broadcast(b""))
        return found

    def leave(self, code: int) -> None:
        """Rank 0 is done: the others end with its exit code. Ranks that are gone stay so."""
        with contextlib.suppress(ResourceError):
            self.tell("leave", code=code)
        self.close()

    def close(self) -> None:
        """End the connections, once every rank that is left has heard what was said last."""
        with contextlib.suppress(ResourceError):
            self._guard(dist.barrier)
        self.abandon()

    def abandon(self) -> None:
        """End the connections at once; the other ranks notice. An open group aborts at exit."""
        dist.destroy_process_group()

    def agreed(self, error: BaseException) -> bool:
        """Whether every rank raised this error, and so stands at the same place."""
        return error is self._agreed

    def fail(self, error: Exception) -> Exception:
        """An error that every rank raises from the same facts, noted as agreed."""
        self._agreed = error
        return error

    def together(self, action: Callable[[], Result]) -> Result:
        """Do what every rank does; where one fails, all fail with the same error.

        Raises: what `action` raised on the first rank where it failed.
        """
        try:
            result = action()
        except Exception as failure:
            said = self.gather(_in_words(failure))
            if all(words is None for words in said[: self.rank]):
                self.fail(failure)
                raise
        else:
            said = self.gather(None)
            if all(words is None for words in said):
                return result
        raise self.fail(_from_words(next(words for words in said if words is not None)))

    def require_same(self, what: str, value: str) -> None:
        """See that all ranks hold the same.

        Raises:
            ResourceError: they do not.
        """
        found = self.gather(value)
        if len(set(found)) == 1:
            return
        other = next(rank for rank, theirs in enumerate(found) if theirs != found[0])
        raise self.fail(
            ResourceError(
                f"{what} of rank {other} differ from those of rank 0",
                found=f"{found[other][:12]} against {found[0][:12]}",
                hint="let all ranks read the same files, with the same versions installed",
            )
        )

    def gather(self, words: Any) -> list[Any]:
        """What each rank says, on all of them; JSON, as nothing that executes may travel."""
        data = json.dumps(words).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        self._guard(dist.all_gather, sizes, torch.tensor([len(data)]))
        width = max(int(size) for size in sizes)
        padded = torch.zeros(width, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.zeros(width, dtype=torch.uint8) for _ in range(self.world)]
        self._guard(dist.all_gather, parts, padded)
        pairs = zip(parts, sizes, strict=True)
        return [json.loads(part[: int(size)].numpy().tobytes()) for part, size in pairs]

    def add(self, tensors: list[torch.Tensor]) -> None:
        """Sum tensors of one dtype over the ranks, packed; in place, and whole on rank 0 alone."""
        bucket: list[torch.Tensor] = []
        for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
            bucket.append(tensor)
            more = following is not None and following.device == tensor.device
            if more and sum(t.nbytes for t in bucket) < BUCKET_BYTES:
                continue
            packed = torch.cat([t.reshape(-1) for t in bucket])
            self._guard(dist.reduce, packed, 0)
            parts = packed.split([t.numel() for t in bucket])
            for own, total in zip(bucket, parts, strict=True):
                own.copy_(total.reshape(own.shape))
            bucket = []

    def send(self, rows: torch.Tensor) -> None:
        """Hand rows to rank 0."""
        self._guard(dist.send, rows, 0)

    def receive(self, rows: torch.Tensor, rank: int) -> None:
        """Take rows from a rank."""
        self._guard(dist.recv, rows, rank)

    def _broadcast(self, data: bytes) -> bytes:
        size = torch.tensor([len(data)])
        self._guard(dist.broadcast, size, 0)
        words = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0:
            words = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._guard(dist.broadcast, words, 0)
        return words.numpy().tobytes()

    def _guard(self, exchange: Callable[..., Any], *arguments: Any) -> None:
        try:
            exchange(*arguments)
        except RuntimeError as error:
            raise ResourceError(
                "a rank has ended or does not answer",
                found=_first_line(error),
                hint="see what torchrun says of the other ranks; use fewer ranks if memory ran out",
            ) from error


def _in_words(error: Exception) -> dict[str, Any]:
    if isinstance(error, MoegeoError):
        return {
            "ours": type(error).__name__, "message": error.message, "found": error.found,
            "hint": error.hint,
        }  # fmt: skip
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return {"ours": None, "memory": memory, "message": f"{type(error).__name__}: {error}"}


def _from_words(words: dict[str, Any]) -> Exception:
    if words["ours"] is None:
        return (MemoryError if words["memory"] else RuntimeError)(words["message"])
    kind: type[MoegeoError] = getattr(errors, words["ours"], MoegeoError)
    return kind(words["message"], found=words["found"], hint=words["hint"])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
