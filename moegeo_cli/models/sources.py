"""`ModelSource`: loads the models of a run's checkpoints, one after another.

`WholeModels` and `StreamedModels` are the sources for transformers' models on one device. Code that
uses a source (taps, batches, Fisher sums) does not depend on how its models are held in memory.
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
    PartSizes,
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
from moegeo_cli.models.uneven import experts_by_layer, join_layers
from moegeo_cli.records.facts import Form, MemoryFacts, MemoryKnown


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory that a replay is planned to use.

    Attributes:
        form: "whole" or "streamed".
        by: how the bytes of activations were found: "trace" (a forward pass on fake tensors),
            "widths" (estimated from the module tree) or "config" (estimated from config.json).
        terms: bytes by name.
        process: bytes that the process held before.
        at_most: largest sum of `terms` that is held at once, in bytes, without `process`.
    """

    form: Form
    by: MemoryKnown
    terms: Mapping[str, int]
    process: int
    at_most: int

    def to_dict(self) -> MemoryFacts:
        """The plan for JSON, without `process`, which differs between runs."""
        return {"form": self.form, "by": self.by, "terms": dict(self.terms),
                "at_most": self.at_most, "reason": None}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReplayMode:
    """How a source's models are replayed.

    Attributes:
        kind: constructor of the `Pass` that `replay` runs; None for the default one.
        batch_tokens: largest number of positions of a batch; None for the default.
        memory: the memory plan; None if memory is not planned.
        notes: sentences for the report.
        form: how the model is held in memory, if there is no plan.
        unplanned: why there is no plan.
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
        """One line with the plan and the measured peak; None for a small model."""
        plan = self.memory
        if plan is None or plan.by == "config":
            return None
        terms = {"process": plan.process, **plan.terms}
        return say_memory(terms, plan.process + plan.at_most, peak_bytes(device))


class ModelSource(Protocol):
    """Loads the models of a run's checkpoints, frozen and in evaluation mode.

    A model is valid until the next call of `load` or `initialise`, which may reuse its memory.

    Attributes:
        mode: how the model that was loaded last is replayed.
    """

    mode: ReplayMode

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """The model with a checkpoint's weights.

        Raises:
            MoegeoError: the files cannot be opened, or no model can be built from them; see
                `loading.load_model`.
        """

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """The model that a checkpoint describes, freshly initialised.

        Args:
            checkpoint: a checkpoint; its weights are not read.
            seed: seed of the initialisation.

        Raises:
            MoegeoError: this source cannot make a freshly initialised model.
        """

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """A context in which the weights of one layer are in memory.

        Args:
            module: path of a module within the layer.
        """


class WholeModels:
    """transformers' models, whole in memory: built once, then filled with each checkpoint.

    Args:
        device: device of the weights and the computation.
        dtype: dtype of the weights and the computation.
        mode: how the models are replayed; None for the default.
        files: files and empty module tree of the first checkpoint. The tree is then filled one
            group of parameters at a time, which needs little memory beside the weights. None if
            transformers' own loader fills it.
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
            # If filling fails, the partly filled model must not be used again.
            built, self._built = self._built, None
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

        model = join_layers(build, experts_by_layer(checkpoint))
        # Its buffers are not those of a checkpoint, so the next model is built anew.
        self._built = self._files = None
        ready: nn.Module = model.eval().requires_grad_(False).to(self.device)
        return ready

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: all weights are always in memory."""
        return contextlib.nullcontext()


class StreamedModels:
    """transformers' models whose layers are read from the files one at a time during a pass.

    Args:
        device: device of the weights and the computation.
        dtype: dtype of the weights and the computation.
        lengths: tokens of each sequence of the probe.
        memory: upper bound of the process's memory in bytes (--memory); None to plan it from the
            free memory.
        sums: gives the bytes of the measured sums of a module tree.
        batch_size: sequences of a batch (--batch-size); None to plan it.
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
        """The layer stream of a checkpoint, without weights, and its memory plan.

        Raises:
            ResourceError: `memory` is too low, or the machine has too little.
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
            ResourceError: as `plan`.
        """
        stream, plan = self.plan(checkpoint)
        stream.open(plan.chunk_bytes)
        experts = "some experts at a time, by the eager kernel" if plan.chunk_bytes else "whole"
        self.mode = ReplayMode(
            kind=streamed(stream, plan.boundary_bytes),
            batch_tokens=plan.positions,
            memory=MemoryPlan(
                "streamed",
                "widths",
                plan.terms_without_process,
                plan.process,
                plan.bound - plan.process,
            ),
            notes=(f"layers streamed from the files, {experts}",),
        )
        model: nn.Module = stream.model
        return model

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`; always refused, because a streamed model needs files."""
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

    def _plan(self, sizes: PartSizes) -> StreamPlan:
        longest = max(self.lengths) * (self.batch_size or 1)
        return plan_stream(
            sizes,
            tokens=sum(self.lengths),
            longest=longest,
            memory=self.memory,
            process=self._held + freed_bytes(sizes.activations(longest)),
            free=free_bytes(self.device),
        )
