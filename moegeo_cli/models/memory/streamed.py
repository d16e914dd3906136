"""Plans what a streamed replay holds in memory at once, term by term, within a bound.

The bound is a sum of what is held together: the bare process; what stays for the whole run
(embeddings, head, norms, routers); twice the larger of a layer's part without experts and a
chunk of experts, as converting what was saved needs both sides; the layer boundaries; one
batch's activations; and the sums that are measured.

Legend: N positions of a batch, T of the probe, S sequences, D model width, F expert width,
E experts, K experts chosen per token, V vocabulary, G groups.
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

SMALL_BLOCKS = 16 * 2**20  # what a process grows by in small objects, counted as its own
CHUNK_BYTES = 64 * 2**20
# Scores of a pair of positions: with the mask, after the softmax, their gradients; as float32.
FLOAT, SCORE_COPIES = 4, 4
# Boundaries that are kept where nobody set a bound: a quarter of what is free, at least this.
FREE_SHARE, LEAST_BOUNDARIES = 0.25, 256 * 2**20


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of a model's parts, and what its activations depend on.

    `resident` stays; `shared` is the largest non-expert part of a layer, `layer` the largest
    layer, `expert` one expert (0 where a layer cannot be had expert by expert); `boundary` is
    what one position leaves at all layer boundaries, `sums` what the measurement itself keeps.
    `attention` is what a layer's attention forms of one position with all others, where its kernel
    forms every pair of positions; else 0.
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
        """Bytes of one batch's activations: of a layer with its graph, or of head and loss."""
        return max(self.of_layer(positions), self.of_head(positions))

    def of_layer(self, positions: int) -> int:
        """Bytes of one batch in a layer, with its graph."""
        inner = self.top_k * (3 * self.width + 6 * self.inner)
        return positions * (self.itemsize * (24 * self.width + inner) + self.attention)

    def of_head(self, positions: int) -> int:
        """Bytes of one batch in head and loss."""
        return logit_bytes(positions, self.vocabulary, self.itemsize)


def score_bytes(config: Any) -> int:
    """Bytes of attention for one pair of positions, forward and backward.

    Eager attention forms every pair. So does torch's own kernel on a CPU where keys and values
    differ in width.

    Args:
        config: the model's.
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

    `chunk_bytes` of experts at a time, None for whole layers; `boundary_bytes` of layer
    boundaries at most; `positions` of a batch. `terms` are the bytes of each part by name.
    """

    chunk_bytes: int | None
    boundary_bytes: int
    positions: int
    terms: dict[str, int]

    @property
    def bound(self) -> int:
        """Bytes that the process should not exceed."""
        return sum(self.terms.values())

    @property
    def process(self) -> int:
        """Bytes that the process held before."""
        return self.terms["process"]

    @property
    def beside(self) -> dict[str, int]:
        """The terms without the process."""
        return {name: size for name, size in self.terms.items() if name != "process"}


def plan_stream(
    sizes: Sizes, tokens: int, longest: int, memory: int | None, process: int, free: int
) -> StreamPlan:
    """Decide what is in memory at once.

    Args:
        sizes: of the model.
        tokens: T.
        longest: positions that a batch holds at least: the longest sequence, or the batch that was
            asked for.
        memory: the bound that was asked for; None for as little as is sensible.
        process: bytes of the process as it is.
        free: bytes that the machine has left.

    Raises:
        ResourceError: the bound is too low for this model and probe.
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
        raise too_little(memory, least, terms, asked=asked)
    boundaries = min(whole, max(sizes.boundary * positions, (memory - least) // 2))
    room = (memory - fixed - sizes.activations(positions) - boundaries) // 2
    room += max(sizes.shared, chunk)
    return _plan(sizes, sizes.layer if room >= sizes.layer else max(chunk, room), positions,
                 boundaries, process)  # fmt: skip


def too_little(
    memory: int, least: int, terms: dict[str, int], *, asked: bool, halves: bool = True
) -> ResourceError:
    """The error for a model that does not fit, before it is loaded.

    Args:
        memory: bytes that there are.
        least: bytes that would do.
        terms: what takes them.
        asked: whether --memory said so; else the machine has no more.
        halves: whether the command can compute in half precision.
    """
    return ResourceError(
        f"--memory is too low for this model: it needs {say_bytes(least)} with the smallest batch"
        if asked
        else f"the model does not fit this machine: it needs {say_bytes(least)} with the smallest "
        "batch, and nothing was loaded",
        found=f"{say_bytes(memory)}; the largest terms: {say_terms(terms)}",
        hint=("raise --memory to that" if asked else "use a machine with so much")
        + ", or use a probe of shorter sequences"
        + (
            ", a smaller --batch-size or --dtype bfloat16"
            if halves
            else " or a smaller --batch-size"
        ),
    )


def _of_batch(sizes: Sizes, positions: int) -> int:
    return sizes.activations(positions) + sizes.boundary * positions


def _plan(sizes: Sizes, chunk: int, positions: int, boundaries: int, process: int) -> StreamPlan:
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
    """One small step forward and backward.

    What libraries load on first use then counts as the process.
    """
    x = torch.ones(1, 1, 64, 64, device=device, dtype=dtype, requires_grad=True)
    y = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    y = torch.nn.functional.silu(torch.nn.functional.linear(y, x.detach()[0, 0]))[0, 0]
    targets = torch.zeros(64, device=device, dtype=torch.long)
    torch.autograd.grad(torch.nn.functional.cross_entropy(y.float(), targets), x)


def peak_bytes(device: torch.device) -> int | None:
    """The most that the process has held on a device since it began; None if it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, ValueError, StopIteration):
        pass  # not Linux, whose getrusage begins with the peak of the parent process
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def say_memory(terms: dict[str, int], bound: int, peak: int | None) -> str:
    """A bound with its terms beside what was measured, in a line."""
    parts = ", ".join(f"{name} {say_bytes(count)}" for name, count in terms.items())
    measured = "not measured" if peak is None else say_bytes(peak)
    return f"memory: at most {say_bytes(bound)} ({parts}); measured peak {measured}"


def say_terms(terms: dict[str, int], count: int = 3) -> str:
    """The largest terms in words."""
    largest = sorted(terms.items(), key=lambda item: -item[1])[:count]
    return ", ".join(f"{name} {say_bytes(size)}" for name, size in largest)


def say_bytes(count: int) -> str:
    """A size for people, in powers of 1024."""
    for unit in ("TiB", "GiB", "MiB"):
        size = 2 ** (40 if unit == "TiB" else 30 if unit == "GiB" else 20)
        if count >= size or unit == "MiB":
            return f"{count / size:,.{0 if unit == 'MiB' else 2}f} {unit}"
    raise AssertionError
