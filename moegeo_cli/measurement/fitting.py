"""Whole models where they fit, streamed ones where they do not, parts where they are asked for.

Legend: T probe positions, S sequences, D router input width, E experts, G groups.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from moegeo_cli.checkpoints.effective import open_effective
from moegeo_cli.checkpoints.folders import find_config
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
    probe: Probe,
    groups_S: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    config: Path | None = None,
    *,
    shared: bool = False,
) -> ModelSource:
    """The source of a run's models.

    Args:
        path: the first checkpoint, which tells how large they are.
        settings: whether streaming was asked for, and the bound.
        probe: the probe.
        groups_S: each sequence's group for resampling.
        device: where models compute.
        dtype: in which dtype.
        config: the folder of config.json that was given for checkpoints without their own.
        shared: whether ranks share the probe: each then holds a whole model, since batches that
            go by the memory that each finds free would not be the same on all.

    Raises:
        UsageError: streaming was asked for, and ranks share the probe.
        ResourceError: parts were asked for, and accelerate is not installed.
    """
    if settings.device_map is not None:
        return PartedModels(settings.device_map, device, dtype, config)
    if shared and (settings.stream or settings.memory is not None):
        raise UsageError(
            "under torchrun each rank holds the whole model",
            found="--stream or --memory",
            hint="stream in a single process, or leave both out",
        )
    if shared or (not settings.stream and _fits(path, config, settings.memory, device, dtype)):
        return WholeModels(device, dtype, config)
    kinds, groups = len(settings.fishers), int(groups_S.max()) + 1

    def sums(model: nn.Module) -> int:
        """Bytes of what a pass keeps: logits and choices of every token, and Fisher sums."""
        shapes = [(r.experts, int(r.weight_ED.shape[1])) for r in find_routers(model)]
        exact = exact_groups_fit(shapes, kinds, groups)
        return sum(
            sum_bytes(experts, width, groups, kinds, exact_groups=exact)
            + 12 * probe.tokens * experts
            for experts, width in shapes
        )

    lengths = [sequence.tokens for sequence in probe.sequences]
    return StreamedModels(device, dtype, lengths, settings.memory, sums, config)


def _fits(
    path: Path,
    config: Path | None,
    memory: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> bool:
    """Whether a whole model fits what is left on the device, or the bound that was set."""
    import transformers.modeling_utils  # noqa: F401 - what it takes counts as taken

    room = free_bytes(device)
    if memory is not None:
        room = min(room, memory - held_bytes(device))
    return (
        open_effective(path, find_config(path, config)).parameters * dtype.itemsize * WHOLE_MODEL
        <= room
    )
