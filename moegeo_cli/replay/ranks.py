"""Several processes (ranks) that replay one probe: connection, orders, shared errors, exchange.

Rank 0 runs the command as a single process would, and sends orders (what to load and replay) to the
other ranks. An error of any rank is raised on all ranks, so that they stay in step. If a rank ends
or loses its connection, the others end too.
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

# Imported before any process group exists. Its functions store the current group as a default
# argument at import, which would keep the group's threads alive until the process ends, and they
# can abort it. transformers imports this module with some models.
import torch.distributed.nn.functional
from torch.distributed.rendezvous import rendezvous

from moegeo_cli import errors
from moegeo_cli.errors import MoegeoError, ResourceError, UsageError

Result = TypeVar("Result")
# Timeouts: for all ranks to connect, and for each exchange. A pass may take hours on a CPU; a
# process that dies is noticed at once, because its connections close.
MEETING, WAITING = timedelta(minutes=5), timedelta(hours=2)
BUCKET_BYTES = 64 * 2**20


@dataclass(slots=True)
class Ranks:
    """One of several processes that replay a probe together.

    Args:
        rank: number of this process; only rank 0 stores results and reports.
        world: number of processes.
        local_rank: number of this process on its machine, which is its CUDA device.
        share_probe: True if each rank replays its share of the probe; False if all replay the whole
            probe, each with its part of the model.
        whole_process: whether the process ends with the command. A split model makes process groups
            whose threads outlive the connections, so it needs this.
    """

    rank: int
    world: int
    local_rank: int
    share_probe: bool = True
    whole_process: bool = False
    _shared_error: BaseException | None = None

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
        """Connect to the other ranks, at the address in torch.distributed's environment variables.

        Raises:
            ResourceError: the other ranks cannot be reached in time.
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
        """The device of this rank.

        Args:
            name: the value of --device: "auto", "cuda" or "cpu".

        Raises:
            UsageError: `name` is one specific device.
            ResourceError: there is no CUDA device for this rank.
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

    def send_order(self, order: str, **details: Any) -> None:
        """On rank 0: send an order to the other ranks."""
        self._broadcast(json.dumps({"order": order, **details}).encode())

    def next_order(self) -> dict[str, Any]:
        """On the other ranks: wait for the next order of rank 0."""
        found: dict[str, Any] = json.loads(self._broadcast(b""))
        return found

    def dismiss_others(self, code: int) -> None:
        """On rank 0: let the other ranks end with this exit code, and disconnect."""
        with contextlib.suppress(ResourceError):
            self.send_order("leave", code=code)
        self.close()

    def close(self) -> None:
        """Disconnect, after every remaining rank has received the last message."""
        with contextlib.suppress(ResourceError):
            self._guard(dist.barrier)
        self.disconnect()

    def disconnect(self) -> None:
        """Disconnect at once; the other ranks get an error. A group left open aborts at exit."""
        dist.destroy_process_group()

    def is_shared_error(self, error: BaseException) -> bool:
        """Whether every rank raised this error, so that they are still in step."""
        return error is self._shared_error

    def as_shared_error(self, error: Exception) -> Exception:
        """Mark an error as one that every rank raises."""
        self._shared_error = error
        return error

    def together(self, action: Callable[[], Result]) -> Result:
        """Run an action on every rank; if it fails on one, all ranks raise the same error.

        Raises: what `action` raised on the lowest rank on which it failed.
        """
        try:
            result = action()
        except Exception as failure:
            answers = self.gather(_error_to_json(failure))
            if all(words is None for words in answers[: self.rank]):
                self.as_shared_error(failure)
                raise
        else:
            answers = self.gather(None)
            if all(words is None for words in answers):
                return result
        raise self.as_shared_error(
            _error_from_json(next(words for words in answers if words is not None))
        )

    def require_same(self, what: str, value: str) -> None:
        """Check that all ranks have the same value.

        Raises:
            ResourceError: they do not.
        """
        found = self.gather(value)
        if len(set(found)) == 1:
            return
        other = next(rank for rank, theirs in enumerate(found) if theirs != found[0])
        raise self.as_shared_error(
            ResourceError(
                f"{what} of rank {other} differ from those of rank 0",
                found=f"{found[other][:12]} against {found[0][:12]}",
                hint="let all ranks read the same files, with the same versions installed",
            )
        )

    def gather(self, words: Any) -> list[Any]:
        """Exchange JSON values: every rank gets the list of all. JSON, because pickle runs code."""
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
        """Sum tensors of one dtype over the ranks, in place; the result is valid on rank 0 only."""
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
        """Send rows to rank 0."""
        self._guard(dist.send, rows, 0)

    def receive(self, rows: torch.Tensor, rank: int) -> None:
        """Receive rows from a rank."""
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
                hint="see what torchrun prints about the others; use fewer ranks if memory ran out",
            ) from error


def _error_to_json(error: Exception) -> dict[str, Any]:
    if isinstance(error, MoegeoError):
        return {
            "ours": type(error).__name__, "message": error.message, "found": error.found,
            "hint": error.hint,
        }  # fmt: skip
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return {"ours": None, "memory": memory, "message": f"{type(error).__name__}: {error}"}


def _error_from_json(words: dict[str, Any]) -> Exception:
    if words["ours"] is None:
        return (MemoryError if words["memory"] else RuntimeError)(words["message"])
    kind: type[MoegeoError] = getattr(errors, words["ours"], MoegeoError)
    return kind(words["message"], found=words["found"], hint=words["hint"])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
