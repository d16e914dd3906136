"""Where a run's models are put: in one piece, in parts, or streamed from their files.

Legend: G groups of sequences.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.weights import open_weights
from moegeo_cli.errors import UsageError
from moegeo_cli.fisher.accumulation import exact_groups_fit, sum_bytes
from moegeo_cli.measurement.settings import Settings
from moegeo_cli.probes import Probe
from moegeo_cli.replay.memory import free_bytes, held_bytes
from moegeo_cli.replay.offloading import PartedModels
from moegeo_cli.replay.routers import find_routers
from moegeo_cli.replay.sources import ModelSource, StreamedModels, WholeModels

# A model that is loaded whole takes this many times its weights, conversion and all.
WHOLE_MODEL = 1.3


def choose_source(
    path: Path,
    settings: Settings,
    device: torch.device,
    dtype: torch.dtype,
    probe: Probe,
    groups_S: np.ndarray,
    *,
    shared: bool,
) -> ModelSource:
    """Where models come from: placed as asked, whole where they fit, else streamed.

    Args:
        path: the first checkpoint, which tells how large they are.
        settings: how to measure.
        device: where they compute.
        dtype: in which dtype.
        probe: what is replayed.
        groups_S: each sequence's group.
        shared: whether ranks share the probe: each then holds a whole model, since batches that
            go by the memory that each finds free would not be the same on all.

    Raises:
        UsageError: streaming was asked for, and ranks share the probe.
    """
    if settings.device_map is not None:
        return PartedModels(settings.device_map, device, dtype)
    if shared and (settings.stream or settings.memory is not None):
        raise UsageError(
            "under torchrun each rank holds the whole model",
            found="--stream or --memory",
            hint="stream in a single process, or leave both out",
        )
    if shared or (not settings.stream and _fits(path, settings, device, dtype)):
        return WholeModels(device, dtype)
    return StreamedModels(
        device,
        dtype,
        [len(s.input_ids) for s in probe.sequences],
        settings.memory,
        partial(_sums, settings, probe, groups_S),
    )


def _fits(path: Path, settings: Settings, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a whole model fits what is left on the device, or the bound that was set."""
    import transformers.modeling_utils  # noqa: F401 - what it takes counts as taken

    size = open_weights(path).parameters * dtype.itemsize
    room = free_bytes(device)
    if settings.memory is not None:
        room = min(room, settings.memory - held_bytes(device))
    return size * WHOLE_MODEL <= room


def _sums(settings: Settings, probe: Probe, groups_S: np.ndarray, model: nn.Module) -> int:
    """Bytes of what a pass keeps: logits and choices of every token, and Fisher sums."""
    shapes = [(r.experts, int(r.weight_ED.shape[1])) for r in find_routers(model)]
    groups, kinds = int(groups_S.max()) + 1, len(settings.fishers)
    exact = exact_groups_fit(shapes, kinds, groups)
    return sum(
        sum_bytes(experts, width, groups, kinds, exact_groups=exact) + 12 * probe.tokens * experts
        for experts, width in shapes
    )
