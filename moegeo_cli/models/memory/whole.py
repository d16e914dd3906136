"""Plan the memory of a replay with the whole model in memory, term by term, within a bound.

Loading ends before the pass begins. So the bound is the larger of process + weights + loading and
process + weights + activations + logits + kept.

Legend: T probe positions, S sequences, R routers, D router input width, E experts, K experts chosen
per token, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from moegeo_cli.models.filling import GROUP_BYTES
from moegeo_cli.models.memory.activations import FLOAT, Activations, BatchTracer
from moegeo_cli.models.memory.allocator import freed_bytes
from moegeo_cli.models.streaming.layer_files import LayerFiles
from moegeo_cli.records.facts import MemoryKnown
from moegeo_cli.replay.batches import TOKENS_PER_BATCH, carries_state, plan_batches
from moegeo_cli.replay.plan import Plan

# Buffers of kernels as a share of the activations, in float32 and in half precision on a CPU (where
# kernels compute in float32), and the bytes of the kernels that oneDNN compiles.
KERNELS, KERNELS_HALF, COMPILED = 0.1, 0.5, 32 * 2**20
READERS = 4  # tensors that transformers reads at the same time
# Bytes for each number that is rewritten: in float64 the number, a transposed copy and the result,
# then the result in float32. Bytes for each number of a rotation of the residual stream.
REWRITING, ROTATION = 3 * 8 + 4, 4 * 8
TERMS = ("weights", "loading", "activations", "logits", "kept")


@dataclass(frozen=True, slots=True)
class WholePlan:
    """How a whole model is replayed.

    Attributes:
        terms: bytes by name, see `TERMS`.
        process: bytes that the process held before, and those of freed blocks that its allocator
            keeps.
        positions: positions of a batch.
        by: how the bytes of activations were found; see `sources.MemoryPlan`.
    """

    terms: dict[str, int]
    process: int
    positions: int
    by: MemoryKnown

    @property
    def bound(self) -> int:
        """Upper bound of the process's memory in bytes."""
        return self.process + at_most(self.terms)


def at_most(terms: dict[str, int]) -> int:
    """Largest sum of terms that is held at once, without the process."""
    in_pass = sum(terms[name] for name in ("activations", "logits", "kept"))
    return terms["weights"] + max(terms["loading"], in_pass)


def make_terms(
    weights: int, loading: int, batch: Activations, kept: int, *, half: bool
) -> dict[str, int]:
    """The terms by name, in bytes. Buffers of kernels count as activations.

    Args:
        weights: parameters and buffers.
        loading: needed beside the weights while they are loaded.
        batch: activations and logits of the largest batch.
        kept: kept by the pass and its command.
        half: whether a CPU computes in half precision.
    """
    kernels = int(batch.total * KERNELS_HALF) + COMPILED if half else int(batch.total * KERNELS)
    values = (weights, loading, batch.layers + kernels, batch.logits, kept)
    return dict(zip(TERMS, values, strict=True))


def is_half_on_cpu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a CPU computes in half precision."""
    return device.type == "cpu" and dtype.itemsize < FLOAT


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once; they may be on the meta device."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in held.values())


def loading_bytes(files: LayerFiles) -> int:
    """Bytes that converting a group of saved tensors needs beside the weights."""
    size = files.dtype.itemsize
    largest = max((files.index.info(n).elements for n in files.index.names()), default=0)
    groups = [sum(files.elements(t) for t in group) * size for group in files.groups(GROUP_BYTES)]
    return max(groups, default=0) + READERS * largest * max(size, FLOAT)


def rewriting_bytes(model: nn.Module, tokens: int) -> int:
    """Bytes of rewriting a copy of a model: the copy, one tensor in float64, and output logits.

    Args:
        model: the module tree; it may be on the meta device.
        tokens: number of tokens whose output logits are compared.
    """
    vocabulary, width = model.get_input_embeddings().weight.shape  # type: ignore[operator]
    largest = max(t.numel() for t in model.parameters())
    work = REWRITING * largest + ROTATION * width**2
    head = FLOAT * vocabulary * width  # a tied head gets its own weights
    return weight_bytes(model) + head + work + 2 * FLOAT * vocabulary * tokens


def kept_bytes(shapes: Sequence[tuple[int, int, int]], tokens: int, sequences: int) -> int:
    """Bytes kept of all routers, without Fisher sums, and bytes of computing the sums of one.

    Args:
        shapes: (E, D, K) of each router.
        tokens: number of tokens whose logits and selected experts are kept.
        sequences: number of sequences.
    """
    by_token = sum(tokens * (4 * e + 8 * k) for e, _, k in shapes)
    by_sequence = sum(sequences * 48 * e for e, _, _ in shapes)
    forming = max((tokens * (16 * e + 160) for e, _, _ in shapes), default=0)
    return by_token + by_sequence + forming


class WholePlanner:
    """Finds the largest batches with which a whole model fits in memory.

    Args:
        files: files and empty module tree of the first checkpoint.
        plan: the plan of the pass.
        lengths: tokens of each sequence of the probe.
        kept: bytes that the pass and its command keep.
        batch_size: sequences of a batch (--batch-size); None to choose it.
    """

    def __init__(
        self,
        files: LayerFiles,
        plan: Plan,
        lengths: Sequence[int],
        kept: int,
        batch_size: int | None,
    ) -> None:
        self.plan, self.lengths, self.kept, self.batch_size = plan, lengths, kept, batch_size
        skeleton = files.model
        self.mixed = not carries_state(skeleton)
        self.weights, self.loading = weight_bytes(skeleton), loading_bytes(files)
        self.half = is_half_on_cpu(files.device, files.dtype)
        self._tracer = BatchTracer(skeleton, files.device)
        self._known: dict[tuple[int, int, bool], Activations] = {}

    def fit(self, process: int, room: int) -> WholePlan | None:
        """The plan with the largest batches that fit; None if the smallest do not fit.

        Args:
            process: bytes that the process holds now.
            room: upper bound of the process's memory in bytes.
        """
        for positions in self.batches():
            found = self.make(positions, process)
            if found.bound <= room:
                return found
            if process + self.weights + max(self.loading, self.kept) > room:
                return None  # no batch is small enough
        return None

    def least(self, process: int) -> WholePlan:
        """The plan with the smallest batches.

        Args:
            process: bytes that the process holds now.
        """
        return self.make(self.batches()[-1], process)

    def batches(self) -> list[int]:
        """Numbers of positions of a batch to try, from the default down to the longest sequence."""
        longest = max(self.lengths)
        if self.batch_size is not None:
            return [self.batch_size * longest]
        found = [max(TOKENS_PER_BATCH, longest)]
        while found[-1] > longest:
            found.append(max(longest, found[-1] // 2))
        return found

    def make(self, positions: int, process: int) -> WholePlan:
        """The plan with batches of `positions` positions, in a process of `process` bytes."""
        batch = self._batch(positions)
        terms = make_terms(self.weights, self.loading, batch, self.kept, half=self.half)
        return WholePlan(
            terms,
            process + freed_bytes(batch.total),
            positions,
            "trace" if batch.traced else "widths",
        )

    def _batch(self, positions: int) -> Activations:
        """Bytes of the batch that needs most: the largest, or that of the longest sequences."""
        splits = None if self.plan.splits_S is None else self.plan.splits_S.tolist()
        batches = plan_batches(
            self.lengths, self.batch_size, mixed=self.mixed, tokens=positions, splits=splits
        )
        shapes = {}
        for members in batches:
            own = [self.lengths[s] for s in members]
            shapes[len(own), max(own)] = len(set(own)) > 1
        largest = max(shapes, key=lambda s: (s[0] * s[1], s[1]))
        widest = max(shapes, key=lambda s: (s[0] * s[1] ** 2, s[1]))
        found = [self._traced(shape, padded=any(shapes.values())) for shape in {largest, widest}]
        return max(found, key=lambda batch: batch.total)

    def _traced(self, shape: tuple[int, int], *, padded: bool) -> Activations:
        key = (*shape, padded)
        if key not in self._known:
            self._known[key] = self._tracer.trace(shape, self.plan, padded=padded)
        return self._known[key]
