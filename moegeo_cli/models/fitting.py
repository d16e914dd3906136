"""Choose how a run's models are held in memory: whole, streamed, or split if options ask for it.

Memory is planned before weights are loaded. The bound is --memory, else the free memory of the
machine. Tried in this order: the whole model, with smaller batches if needed; the model streamed
layer by layer; an error that states how much memory would be enough.

Legend: T probe positions, S sequences, D router input width, E experts, G groups.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.checkpoints.text_part import text_config
from moegeo_cli.errors import MoegeoError, UsageError
from moegeo_cli.fisher.accumulation import exact_groups_fit, sum_bytes
from moegeo_cli.geometry.masked import find_masked
from moegeo_cli.models.filling import open_skeleton
from moegeo_cli.models.memory.activations import FLOAT, Activations, estimate_layers
from moegeo_cli.models.memory.allocator import (
    freed_bytes,
    keep_freed_blocks,
    return_freed_blocks,
)
from moegeo_cli.models.memory.machine import free_bytes
from moegeo_cli.models.memory.streamed import (
    SMALL_BLOCKS,
    does_not_fit,
    held_bytes,
    warm_up,
)
from moegeo_cli.models.memory.whole import (
    WholePlan,
    WholePlanner,
    at_most,
    is_half_on_cpu,
    kept_bytes,
    make_terms,
    rewriting_bytes,
)
from moegeo_cli.models.offloading import DeviceMapModels
from moegeo_cli.models.parallel import ParallelModels
from moegeo_cli.models.sources import (
    MemoryPlan,
    ModelSource,
    ReplayMode,
    StreamedModels,
    WholeModels,
)
from moegeo_cli.probes import Probe, Sample
from moegeo_cli.replay.batches import TOKENS_PER_BATCH
from moegeo_cli.replay.plan import Plan
from moegeo_cli.replay.sampling import sample_size
from moegeo_cli.replay.token_losses import logit_bytes
from moegeo_cli.routers.finding import find_routers
from moegeo_cli.settings import Settings

# Below this estimate in bytes, transformers loads the model, and memory is not planned closer.
SMALL = 512 * 2**20
# Bytes that transformers' loader needs beside the weights, as a multiple of them: pages of the
# files, the previous model, and tensors that were read ahead.
USUAL_LOADER = 3
# The same for a rewritten copy and its largest tensor in float64.
ROUGH_COPIES = 3
# Config keys of layers that carry a state, whose memory does not follow from their widths.
STATEFUL_KEY = re.compile(r"mamba|ssm|linear_|conv|recurr|state|chunk|lightning")
FEWER = "batches of {:,} positions: larger ones do not fit in memory"


@dataclass(frozen=True, slots=True)
class Request:
    """What a command replays, and what decides how much memory that needs.

    Attributes:
        checkpoint: the first checkpoint, whose files give the sizes.
        architecture: its architecture.
        probe: the probe.
        groups_S: group of each sequence, shape (S,).
        settings: the settings of the run.
        device: device of the weights and the computation.
        dtype: dtype of the weights and the computation.
        beside: bytes that the command keeps in addition to what a pass keeps.
        every_token: whether logits and selected experts of every token are kept, not of a sample.
        verified: number of tokens whose output logits verify that a rewritten copy of the model
            computes the same function; 0 for a command that rewrites no model. A model that is
            rewritten must fit whole.
        world: number of ranks.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    probe: Probe
    groups_S: np.ndarray
    settings: Settings
    device: torch.device
    dtype: torch.dtype
    beside: int = 0
    every_token: bool = False
    verified: int = 0
    world: int = 1

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each sequence."""
        return [sequence.tokens for sequence in self.probe.sequences]

    def plan(self) -> Plan:
        """The plan of the pass, as far as memory depends on it."""
        splits = [s.source for s in self.probe.sequences if not isinstance(s, Sample)]
        return Plan(
            fishers=self.settings.fishers,
            groups_S=self.groups_S,
            splits_S=np.array(splits) if self.architecture.encoder_decoder else None,
        )

    def kept(self, shapes: Sequence[tuple[int, int, int]]) -> int:
        """Bytes that a pass and its command keep of the routers.

        Args:
            shapes: (E, D, K) of each router.
        """
        kinds, groups = len(self.settings.fishers), int(self.groups_S.max()) + 1
        exact = exact_groups_fit([shape[:2] for shape in shapes], kinds, groups)
        sums = sum(sum_bytes(e, d, groups, kinds, exact_groups=exact) for e, d, _ in shapes)
        once = sums + kept_bytes(shapes, self.tokens_kept(shapes), len(self.lengths))
        return (
            self.beside + (2 if self.verified else 1) * once
        )  # sums of the copy and of the original

    def tokens_kept(self, shapes: Sequence[tuple[int, int, int]]) -> int:
        """Number of tokens whose logits and selected experts are kept: all of them, or a sample.

        All are needed for a hash router and for a router with experts that are switched off.

        Args:
            shapes: (E, D, K) of each router.
        """
        tokens = self.probe.tokens
        sampled = sample_size([(e, k) for e, _, k in shapes])
        if tokens <= sampled or self.every_token or self.architecture.hash_layers:
            return tokens
        return tokens if _switches_off(self.checkpoint) else sampled

    def kept_of(self, model: nn.Module) -> int:
        """`kept` for a model's routers, plus the bytes of rewriting a copy if the command does."""
        shapes = [(r.experts, int(r.weight_ED.shape[1]), r.top_k or 1) for r in find_routers(model)]
        return self.kept(shapes) + (rewriting_bytes(model, self.verified) if self.verified else 0)


def _switches_off(checkpoint: Checkpoint) -> bool:
    """Whether a router in the files switches experts off. True if the files cannot be read."""
    index = checkpoint.weights
    try:
        for router in find_router_tensors(index, checkpoint.config_architecture):
            weight_ED = index.read(router.weight)
            biases = (None if n is None else index.read(n)
                      for n in (router.bias, router.selection_bias))  # fmt: skip
            if find_masked(weight_ED if weight_ED.ndim == 2 else None, *biases):
                return True
    except MoegeoError:
        return True
    return False


def choose_source(request: Request, *, shared: bool = False) -> ModelSource:
    """The source of a run's models. No weights are read.

    Args:
        request: what is replayed.
        shared: whether several ranks share the probe. Each rank then holds a whole model, because
            batches planned from each rank's free memory would differ between ranks.

    Raises:
        UsageError: --stream or --memory with several ranks, or --parallel without.
        ResourceError: the model does not fit, or accelerate is not installed for --device-map.
    """
    settings, device, dtype = request.settings, request.device, request.dtype
    if settings.device_map is not None:
        return DeviceMapModels(settings.device_map, device, dtype)
    if settings.parallel != "data":
        if not shared:
            raise UsageError(
                "--parallel needs several ranks",
                found=f"--parallel {settings.parallel} in a single process",
                hint="torchrun --nproc-per-node 2 -m moegeo_cli analyze RUN --parallel "
                f"{settings.parallel}",
            )
        return ParallelModels(settings.parallel, request.world, device, dtype)
    if shared and (settings.stream or settings.memory is not None):
        raise UsageError(
            "--stream and --memory do not work under torchrun: each rank holds the whole model",
            found="--stream or --memory",
            hint="stream in a single process, or leave both out",
        )
    if shared:
        return WholeModels(device, dtype, _rough_mode(request))
    whole = None if settings.stream else _whole(request)
    if whole is not None:
        return whole
    streamed = StreamedModels(
        device, dtype, request.lengths, settings.memory, request.kept_of, settings.batch_size
    )
    streamed.plan(request.checkpoint)
    return streamed


def _whole(request: Request) -> ModelSource | None:
    """The source of models held whole; None if they do not fit."""
    settings, device, dtype = request.settings, request.device, request.dtype
    if settings.memory is None:
        rough = _rough_mode(request)
        if rough.memory is not None and rough.memory.at_most <= min(SMALL, free_bytes(device)):
            keep_freed_blocks()
            return WholeModels(device, dtype, rough)
    return_freed_blocks()
    files = open_skeleton(request.checkpoint, device, dtype)
    planner = WholePlanner(
        files, request.plan(), request.lengths, request.kept_of(files.model), settings.batch_size
    )
    warm_up(device, dtype)
    process = held_bytes(device) + SMALL_BLOCKS
    room = settings.memory or process + free_bytes(device)
    found = planner.fit(process, room)
    if found is None and request.verified:
        least = planner.least(process)
        terms = {"process": least.process, **least.terms}
        raise does_not_fit(
            room, least.bound, terms, asked=settings.memory is not None, halves=False
        )
    if found is None:
        return None
    if settings.memory is None and 2 * found.bound <= room:
        keep_freed_blocks()
        freed = freed_bytes(found.terms["activations"] + found.terms["logits"], kept=True)
        found = replace(found, process=found.process + freed)
    return WholeModels(device, dtype, _mode(found), files)


def _rough_mode(request: Request) -> ReplayMode:
    """The replay mode of a whole model that transformers loads, by a rough estimate."""
    terms = _rough_terms(request)
    if terms is None:
        return ReplayMode(unplanned="config.json does not tell the model's widths")
    return _mode(WholePlan(terms, held_bytes(request.device), TOKENS_PER_BATCH, "config"))


def _mode(plan: WholePlan) -> ReplayMode:
    """The replay mode of a plan."""
    fewer = plan.positions < TOKENS_PER_BATCH
    return ReplayMode(
        batch_tokens=plan.positions if fewer else None,
        memory=MemoryPlan("whole", plan.by, plan.terms, plan.process, at_most(plan.terms)),
        notes=(FEWER.format(plan.positions),) if fewer else (),
    )


def _rough_terms(request: Request) -> dict[str, int] | None:
    """The terms of a memory plan, from the widths in config.json; None if it lacks them."""
    architecture, text = request.architecture, text_config(request.checkpoint.config)
    width, depth, vocabulary = architecture.hidden, architecture.layers, text.get("vocab_size")
    if any(STATEFUL_KEY.search(key) for key in text) or not (width and depth and vocabulary):
        return None
    weights = request.checkpoint.weights.parameters * request.dtype.itemsize
    copies = weights * ROUGH_COPIES if request.verified else 0
    sizes = [text.get(key) for key in ("moe_intermediate_size", "intermediate_size")]
    inner = max([size for size in sizes if isinstance(size, int)], default=4 * width)
    top_k = max([architecture.top_k or 1, *(architecture.top_k_by_layer or ())])
    longest = max(request.lengths)
    positions = (request.settings.batch_size or 1) * longest
    if request.settings.batch_size is None:
        positions = max(TOKENS_PER_BATCH, longest)
    graph = request.plan().needs_loss
    layers = estimate_layers(
        positions, depth, width, depth * top_k * (width + 2 * inner), graph=graph
    )
    scores = depth * positions * longest * FLOAT * int(text.get("num_attention_heads") or 1)
    logits = logit_bytes(positions, vocabulary, request.dtype.itemsize) if graph else 0
    return make_terms(
        weights, USUAL_LOADER * weights, Activations(layers + scores, logits, False),
        request.kept([(architecture.experts, width, top_k)] * depth) + copies,
        half=is_half_on_cpu(request.device, request.dtype),
    )  # fmt: skip
