"""Plans what a whole model holds in memory at once, term by term, within a bound.

Loading and the pass do not happen at once, so the bound is the larger of
process + weights + loading and process + weights + activations + logits + kept.

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

# Kernels hold buffers of their own beside the tensors that they are given: share of those. On a
# CPU, those of half precision compute in float32, and oneDNN keeps what it compiled.
KERNELS, KERNELS_HALF, COMPILED = 0.1, 0.5, 32 * 2**20
READERS = 4  # tensors that transformers reads at a time
# Bytes of a number that is rewritten: in float64 itself, its copy in the order of a product and the
# result, then the result as float32. Bytes of a number of a rotation of the residual stream.
REWRITING, ROTATION = 3 * 8 + 4, 4 * 8
TERMS = ("weights", "loading", "activations", "logits", "kept")


@dataclass(frozen=True, slots=True)
class WholePlan:
    """How a whole model is replayed.

    `terms` are bytes by name (see `TERMS`), `process` what the process had before, with the blocks
    that its allocator keeps; `positions` are those of a batch. `by` says how activations are
    known: "trace", or "widths" for an estimate.
    """

    terms: dict[str, int]
    process: int
    positions: int
    by: MemoryKnown

    @property
    def bound(self) -> int:
        """Bytes that the process should not exceed."""
        return self.process + at_most(self.terms)


def at_most(terms: dict[str, int]) -> int:
    """The most that is held at once beside the process. Loading and the pass do not overlap."""
    in_pass = sum(terms[name] for name in ("activations", "logits", "kept"))
    return terms["weights"] + max(terms["loading"], in_pass)


def make_terms(
    weights: int, loading: int, batch: Activations, kept: int, *, half: bool
) -> dict[str, int]:
    """The terms by name. Buffers of kernels count as activations.

    Args:
        weights: bytes of parameters and buffers.
        loading: what reading them takes beside.
        batch: what the largest batch takes.
        kept: what the pass keeps.
        half: whether a CPU computes in half precision.
    """
    kernels = int(batch.total * KERNELS_HALF) + COMPILED if half else int(batch.total * KERNELS)
    values = (weights, loading, batch.layers + kernels, batch.logits, kept)
    return dict(zip(TERMS, values, strict=True))


def halves_on_cpu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a CPU computes in half precision."""
    return device.type == "cpu" and dtype.itemsize < FLOAT


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, shared ones once; the module tree may be without memory."""
    held = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(t.numel() * t.element_size() for t in held.values())


def loading_bytes(files: LayerFiles) -> int:
    """Bytes of converting a group of saved tensors, beside the parameters that they become."""
    size = files.dtype.itemsize
    largest = max((files.index.info(n).elements for n in files.index.names()), default=0)
    groups = [sum(files.elements(t) for t in group) * size for group in files.groups(GROUP_BYTES)]
    return max(groups, default=0) + READERS * largest * max(size, FLOAT)


def rewriting_bytes(model: nn.Module, tokens: int) -> int:
    """What rewriting a copy of a model takes: the copy, one of its tensors in float64, and logits.

    Args:
        model: the module tree, with or without memory.
        tokens: how many have their output logits compared, before and after.
    """
    vocabulary, width = model.get_input_embeddings().weight.shape  # type: ignore[operator]
    largest = max(t.numel() for t in model.parameters())
    work = REWRITING * largest + ROTATION * width**2
    head = FLOAT * vocabulary * width  # a tied one gets weights of its own
    return weight_bytes(model) + head + work + 2 * FLOAT * vocabulary * tokens


def kept_bytes(shapes: Sequence[tuple[int, int, int]], tokens: int, sequences: int) -> int:
    """Bytes kept of all routers beside Fisher sums, and bytes of forming the sums of one.

    Args:
        shapes: (E, D, K) of each router.
        tokens: how many have their logits and choices kept.
        sequences: S.
    """
    by_token = sum(tokens * (4 * e + 8 * k) for e, _, k in shapes)
    by_sequence = sum(sequences * 48 * e for e, _, _ in shapes)
    forming = max((tokens * (16 * e + 160) for e, _, _ in shapes), default=0)
    return by_token + by_sequence + forming


class WholePlanner:
    """Plans a whole model's replay within a bound.

    Args:
        files: of the first checkpoint, with the empty module tree that they fill.
        plan: of the pass.
        lengths: of the probe's sequences.
        kept: bytes of what a pass keeps.
        batch_size: sequences a batch, where that was asked for.
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
        self.half = halves_on_cpu(files.device, files.dtype)
        self._tracer = BatchTracer(skeleton, files.device)
        self._known: dict[tuple[int, int, bool], Activations] = {}

    def fit(self, process: int, room: int) -> WholePlan | None:
        """The plan with the largest batches within `room` bytes; None where the least do not fit.

        Args:
            process: bytes of the process as it is.
            room: bytes that the process may come to.
        """
        for positions in self.batches():
            found = self.make(positions, process)
            if found.bound <= room:
                return found
            if process + self.weights + max(self.loading, self.kept) > room:
                return None  # no batch is small enough
        return None

    def least(self, process: int) -> WholePlan:
        """The plan with the smallest batches."""
        return self.make(self.batches()[-1], process)

    def batches(self) -> list[int]:
        """Positions of a batch, from the usual number down to one sequence."""
        longest = max(self.lengths)
        if self.batch_size is not None:
            return [self.batch_size * longest]
        found = [max(TOKENS_PER_BATCH, longest)]
        while found[-1] > longest:
            found.append(max(longest, found[-1] // 2))
        return found

    def make(self, positions: int, process: int) -> WholePlan:
        """The plan with batches of so many positions."""
        batch = self._batch(positions)
        terms = make_terms(self.weights, self.loading, batch, self.kept, half=self.half)
        return WholePlan(
            terms,
            process + freed_bytes(batch.total),
            positions,
            "trace" if batch.traced else "widths",
        )

    def _batch(self, positions: int) -> Activations:
        """Bytes of the batch that takes most: the largest, or that of the longest sequences."""
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
