"""Gives the models of a run's checkpoints, one after another.

Everything behind it (taps, batches, Fisher sums) takes whatever module it is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.errors import BaselineError
from moegeo_cli.global_state import seeded
from moegeo_cli.models.filling import fill_model, fill_tree
from moegeo_cli.models.loading import (
    load_model,
    swap_weights,
)
from moegeo_cli.models.memory.allocator import freed_bytes, return_freed_blocks
from moegeo_cli.models.memory.machine import free_bytes
from moegeo_cli.models.memory.streamed import (
    SMALL_BLOCKS,
    Sizes,
    StreamPlan,
    held_bytes,
    peak_bytes,
    plan_stream,
    say_memory,
    warm_up,
)
from moegeo_cli.models.model_config import auto_class, open_config
from moegeo_cli.models.streaming.layer_files import LayerFiles
from moegeo_cli.models.streaming.layer_stream import LayerStream
from moegeo_cli.models.streaming.streamed import streamed
from moegeo_cli.models.uneven import join_layers, own_experts
from moegeo_cli.records.facts import Form, MemoryFacts, MemoryKnown


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """How much memory a replay is planned to hold.

    `form` is "whole" or "streamed", `terms` are bytes by name, `process` those that the process
    held before, `at_most` their sum as far as they are held at once. `by` says how activations are
    known: "trace", "widths" of the module tree, or "config" for a small model by its config alone.
    """

    form: Form
    by: MemoryKnown
    terms: Mapping[str, int]
    process: int
    at_most: int

    def to_dict(self) -> MemoryFacts:
        """The plan for JSON, without the process, which differs each time."""
        return {"form": self.form, "by": self.by, "terms": dict(self.terms),
                "at_most": self.at_most, "reason": None}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplayMode:
    """How a source's models are replayed.

    `kind` is what `replay` takes, `batch_tokens` the positions of a batch (None: as usual),
    `memory` what is planned to be held; where nothing is, `form` and `unplanned` say why.
    """

    kind: Callable[..., Any] | None = None
    batch_tokens: int | None = None
    memory: MemoryPlan | None = None
    notes: tuple[str, ...] = ()
    form: Form = "whole"
    unplanned: str = "not planned"

    def describe_memory(self) -> MemoryFacts:
        """The plan for JSON."""
        if self.memory is not None:
            return self.memory.to_dict()
        return {"form": self.form, "by": None, "terms": None, "at_most": None,
                "reason": self.unplanned}  # fmt: skip

    def say_memory(self, device: torch.device) -> str | None:
        """The plan and the measured peak in a line; None for a small model."""
        own = self.memory
        if own is None or own.by == "config":
            return None
        terms = {"process": own.process, **own.terms}
        return say_memory(terms, own.process + own.at_most, peak_bytes(device))


class ModelSource(Protocol):
    """Gives the models of a run's checkpoints, frozen and in evaluation mode.

    A model that was given stays as it is until the next one is asked for; `mode` is of it.
    """

    mode: ReplayMode

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The model with a checkpoint's weights.

        Raises: what opening and loading raise.
        """

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """The model that a checkpoint describes, freshly initialised."""

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """A context in which the weights of a module's layer are in memory."""


class WholeModels:
    """transformers' models, loaded whole: built once, then given each checkpoint's weights.

    Args:
        device: where they compute.
        dtype: in which dtype.
        mode: how they are replayed.
        files: of the first checkpoint, with the empty module tree that they fill: the model is
            filled some parameters at a time, which takes little memory beside them. None where
            transformers loads it.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        mode: ReplayMode | None = None,
        files: LayerFiles | None = None,
    ) -> None:
        self.device, self.dtype = device, dtype
        self.mode, self.by_groups = mode or ReplayMode(), files is not None
        self._files = files
        self._built: nn.Module | None = None if files is None else files.model

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """See `ModelSource`."""
        if self.by_groups:
            built, self._built = self._built, None  # one that is filled in part is never kept
            files, self._files = self._files, None
            if files is not None and files.checkpoint is checkpoint:
                self._built = fill_tree(files)
            else:
                self._built = fill_model(built, checkpoint, self.device, self.dtype)
        elif self._built is None:
            self._built = load_model(checkpoint, self.device, self.dtype)
        else:
            self._built = swap_weights(self._built, checkpoint, self.device)
        return self._built

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`."""

        def build(experts: int | None) -> Any:
            config = open_config(checkpoint, experts)
            with seeded(seed):
                return auto_class(config)[0].from_config(config, dtype=self.dtype)

        model = join_layers(build, own_experts(checkpoint))
        # Its buffers are not a checkpoint's: build the next one afresh.
        self._built = self._files = None
        ready: nn.Module = model.eval().requires_grad_(False).to(self.device)
        return ready

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: they always are."""
        return contextlib.nullcontext()


class StreamedModels:
    """transformers' models, their layers read from the files while they compute.

    Args:
        device: where they compute.
        dtype: in which dtype.
        lengths: of the probe's sequences.
        memory: bytes that the process should stay within; None for as little as is sensible.
        sums: bytes of what is measured, by the model's sizes.
        batch_size: sequences a batch, where that was asked for.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        lengths: list[int],
        memory: int | None,
        sums: Callable[[nn.Module], int],
        batch_size: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.device, self.dtype, self.lengths = device, dtype, lengths
        self.memory, self.sums = memory, sums
        self.mode = ReplayMode()
        self._stream: LayerStream | None = None
        self._held = 0

    def plan(self, checkpoint: Checkpoint) -> tuple[LayerStream, StreamPlan]:
        """The model without its weights, and how a checkpoint of it is streamed.

        Raises:
            ResourceError: the bound is too low.
        """
        if self._stream is None:
            return_freed_blocks()
            self._stream = LayerStream(checkpoint, self.device, self.dtype)
            warm_up(self.device, self.dtype)
            self._held = held_bytes(self.device) + SMALL_BLOCKS
        stream = self._stream
        stream.attach(checkpoint)
        return stream, self._plan(stream.sizes(self.sums(stream.model), max(self.lengths)))

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """See `ModelSource`.

        Raises:
            ResourceError: the bound is too low.
        """
        stream, plan = self.plan(checkpoint)
        stream.open(plan.chunk_bytes)
        experts = "some experts at a time, by the eager kernel" if plan.chunk_bytes else "whole"
        self.mode = ReplayMode(
            kind=streamed(stream, plan.boundary_bytes),
            batch_tokens=plan.positions,
            memory=MemoryPlan(
                "streamed", "widths", plan.beside, plan.process, plan.bound - plan.process
            ),
            notes=(f"layers streamed from the files, {experts}",),
        )
        model: nn.Module = stream.model
        return model

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`; not possible here.

        Raises:
            BaselineError: always.
        """
        raise BaselineError(
            "a fresh initialisation cannot be streamed: it has no files",
            hint="use --baseline STEP or PATH, or leave --stream and --memory out",
        )

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`."""
        assert self._stream is not None
        paths = self._stream.paths
        return self._stream.layer(
            next(n for n, p in enumerate(paths) if f"{module}.".startswith(f"{p}."))
        )

    def _plan(self, sizes: Sizes) -> StreamPlan:
        longest = max(self.lengths) * (self.batch_size or 1)
        return plan_stream(
            sizes,
            tokens=sum(self.lengths),
            longest=longest,
            memory=self.memory,
            process=self._held + freed_bytes(sizes.activations(longest)),
            free=free_bytes(self.device),
        )
