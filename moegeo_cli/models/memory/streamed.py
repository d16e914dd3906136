"""Plan the memory of a streamed replay, term by term, within a bound.

The bound is the sum of these terms, in bytes:

- process: the process before the model is loaded;
- resident: parameters that stay in memory (embeddings, head, norms, routers);
- layer: twice the larger of a layer's parameters without experts and a chunk of experts, because
  saved and converted tensors are in memory together;
- boundaries: the layers' outputs that are kept for the backward pass;
- activations and logits: of one batch;
- sums: what is measured.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from moegeo_cli.errors import ResourceError
from moegeo_cli.replay.batches import TOKENS_PER_BATCH
from moegeo_cli.replay.token_losses import logit_bytes

SMALL_BLOCKS = 16 * 2**20  # bytes of small objects by which the process grows during a replay
CHUNK_BYTES = 64 * 2**20  # bytes of experts that are read together
# Attention scores in memory at once: with the mask, after the softmax, and the gradients of both.
FLOAT, SCORE_COPIES = 4, 4
# Without a bound, layer boundaries may take a quarter of the free memory, and at least this.
FREE_SHARE, LEAST_BOUNDARIES = 0.25, 256 * 2**20


@dataclass(frozen=True, slots=True)
class PartSizes:
    """Bytes of a model's parts, and the sizes that its activations depend on.

    Attributes:
        resident: bytes of parameters that stay in memory.
        shared: bytes of the parameters of a layer without experts, of the largest layer.
        layer: bytes of the largest layer.
        expert: bytes of the largest expert; 0 if experts cannot be read one by one.
        boundary: bytes of one position in the outputs of all layers.
        sums: bytes of what is measured.
        width: width of the model.
        inner: inner width of an expert.
        top_k: experts chosen per token.
        vocabulary: size of the vocabulary.
        itemsize: bytes of one number of the computation's dtype.
        attention: bytes of one position's attention scores in a layer, if the kernel computes
            those of all pairs of positions; else 0.
    """

    resident: int
    shared: int
    layer: int
    expert: int
    boundary: int
    sums: int
    width: int
    inner: int
    top_k: int
    vocabulary: int
    itemsize: int
    attention: int = 0

    def activations(self, positions: int) -> int:
        """Bytes of a batch's activations: the larger of `of_layer` and `of_head`."""
        return max(self.of_layer(positions), self.of_head(positions))

    def of_layer(self, positions: int) -> int:
        """Bytes of a batch in one layer, with the autograd graph."""
        inner = self.top_k * (3 * self.width + 6 * self.inner)
        return positions * (self.itemsize * (24 * self.width + inner) + self.attention)

    def of_head(self, positions: int) -> int:
        """Bytes of a batch in the output head and the loss."""
        return logit_bytes(positions, self.vocabulary, self.itemsize)


def score_bytes(config: Any) -> int:
    """Bytes of the attention scores of one pair of positions, forward and backward.

    Eager attention computes the scores of all pairs. So does torch's SDPA kernel on a CPU if keys
    and values differ in width. Otherwise 0.

    Args:
        config: config of the model.
    """
    text = config.get_text_config()
    keys = [getattr(text, name, None) for name in ("qk_nope_head_dim", "qk_rope_head_dim")]
    key, value = sum(n for n in keys if isinstance(n, int)), getattr(text, "v_head_dim", None)
    if config._attn_implementation != "eager" and (value is None or key == value):
        return 0
    heads = getattr(text, "num_attention_heads", None)
    heads = max(heads) if isinstance(heads, list | tuple) else heads
    return SCORE_COPIES * FLOAT * (heads or 1)


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """How a model is streamed.

    Attributes:
        chunk_bytes: bytes of experts that are in memory together; None for whole layers.
        boundary_bytes: largest number of bytes of layer boundaries.
        positions: positions of a batch.
        terms: bytes by name; see the module's docstring.
    """

    chunk_bytes: int | None
    boundary_bytes: int
    positions: int
    terms: dict[str, int]

    @property
    def bound(self) -> int:
        """Upper bound of the process's memory in bytes."""
        return sum(self.terms.values())

    @property
    def process(self) -> int:
        """Bytes that the process held before."""
        return self.terms["process"]

    @property
    def terms_without_process(self) -> dict[str, int]:
        """All terms except "process"."""
        return {name: size for name, size in self.terms.items() if name != "process"}


def plan_stream(
    sizes: PartSizes, tokens: int, longest: int, memory: int | None, process: int, free: int
) -> StreamPlan:
    """Choose the size of batches, of chunks of experts and of the kept layer boundaries.

    Args:
        sizes: sizes of the model's parts.
        tokens: positions of the probe.
        longest: smallest possible number of positions of a batch: the longest sequence, times
            --batch-size if it is set.
        memory: --memory in bytes; None if it is not set.
        process: bytes that the process holds now.
        free: bytes that are free on the device.

    Raises:
        ResourceError: `memory`, or the free memory, is too low for this model and probe.
    """
    positions = max(TOKENS_PER_BATCH, longest)
    chunk = max(CHUNK_BYTES, sizes.expert) if sizes.expert else sizes.layer
    whole = sizes.boundary * tokens
    asked = memory is not None
    if memory is None:
        most = max(LEAST_BOUNDARIES, int(free * FREE_SHARE))
        made = _plan(sizes, chunk, positions, min(whole, max(most, sizes.boundary * positions)),
                     process)  # fmt: skip
        if made.bound <= process + free:
            return made
        memory = process + free
    chunk = sizes.expert or sizes.layer
    fixed = process + sizes.resident + sizes.sums + 2 * max(sizes.shared, chunk)
    left = memory - fixed
    while positions > longest and 3 * _of_batch(sizes, positions) > left:
        positions = max(longest, positions // 2)
    least = fixed + _of_batch(sizes, positions)
    if least > memory:
        terms = _plan(sizes, chunk, positions, sizes.boundary * positions, process).terms
        raise does_not_fit(memory, least, terms, asked=asked)
    boundaries = min(whole, max(sizes.boundary * positions, (memory - least) // 2))
    room = (memory - fixed - sizes.activations(positions) - boundaries) // 2
    room += max(sizes.shared, chunk)
    return _plan(sizes, sizes.layer if room >= sizes.layer else max(chunk, room), positions,
                 boundaries, process)  # fmt: skip


def does_not_fit(
    memory: int, least: int, terms: dict[str, int], *, asked: bool, halves: bool = True
) -> ResourceError:
    """The error for a model that does not fit, before it is loaded.

    Args:
        memory: bytes that are available.
        least: bytes that would be enough.
        terms: bytes by name, for the message.
        asked: whether --memory set the bound, and not the machine.
        halves: whether the command can compute in half precision, for the hint.
    """
    return ResourceError(
        f"--memory is too low for this model: it needs {say_bytes(least)} with the smallest batch"
        if asked
        else f"the model does not fit this machine: it needs {say_bytes(least)} with the smallest "
        "batch, and nothing was loaded",
        found=f"{say_bytes(memory)}; the largest terms: {say_terms(terms)}",
        hint=("raise --memory to that" if asked else "use a machine with so much memory")
        + ", or use a probe of shorter sequences"
        + (
            ", a smaller --batch-size or --dtype bfloat16"
            if halves
            else " or a smaller --batch-size"
        ),
    )


def _of_batch(sizes: PartSizes, positions: int) -> int:
    return sizes.activations(positions) + sizes.boundary * positions


def _plan(
    sizes: PartSizes, chunk: int, positions: int, boundaries: int, process: int
) -> StreamPlan:
    whole = not sizes.expert or chunk >= sizes.layer
    return StreamPlan(
        chunk_bytes=None if whole else chunk,
        boundary_bytes=boundaries,
        positions=positions,
        terms={
            "process": process,
            "resident": sizes.resident,
            "layer": 2 * (sizes.layer if whole else max(sizes.shared, chunk)),
            "boundaries": boundaries,
            "activations": sizes.of_layer(positions),
            "logits": max(0, sizes.of_head(positions) - sizes.of_layer(positions)),
            "sums": sizes.sums,
        },
    )


def held_bytes(device: torch.device) -> int:
    """Bytes that the process holds on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.memory_reserved(device))
    return int(psutil.Process().memory_info().rss)


def warm_up(device: torch.device, dtype: torch.dtype) -> None:
    """Run a small forward and backward pass, so that libraries load before memory is measured."""
    x = torch.ones(1, 1, 64, 64, device=device, dtype=dtype, requires_grad=True)
    y = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    y = torch.nn.functional.silu(torch.nn.functional.linear(y, x.detach()[0, 0]))[0, 0]
    targets = torch.zeros(64, device=device, dtype=torch.long)
    torch.autograd.grad(torch.nn.functional.cross_entropy(y.float(), targets), x)


def peak_bytes(device: torch.device) -> int | None:
    """Peak bytes that the process has held on a device; None if the system does not report them."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        pass  # not Linux. On Linux, getrusage is not used: it starts from the parent's peak
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def say_memory(terms: dict[str, int], bound: int, peak: int | None) -> str:
    """One line with the planned bound, its terms, and the measured peak."""
    parts = ", ".join(f"{name} {say_bytes(count)}" for name, count in terms.items())
    measured = "not measured" if peak is None else say_bytes(peak)
    return f"memory: at most {say_bytes(bound)} ({parts}); measured peak {measured}"


def say_terms(terms: dict[str, int], count: int = 3) -> str:
    """The `count` largest terms as text."""
    largest = sorted(terms.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {say_bytes(size)}" for name, size in largest)


def say_bytes(count: int) -> str:
    """A size as text, in MiB, GiB or TiB."""
    for unit in ("TiB", "GiB", "MiB"):
        size = 2 ** (40 if unit == "TiB" else 30 if unit == "GiB" else 20)
        if count >= size or unit == "MiB":
            return f"{count / size:,.{0 if unit == 'MiB' else 2}f} {unit}"
    raise AssertionError
