"""What stands in for a transformers model in a replay, and what must be said of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.probes import Sample
from moegeo_cli.replay.plan import RouterTrace
from moegeo_cli.replay.samples import as_batch
from moegeo_cli.routers.finding import Router


class StandIn(nn.Module, ABC):
    """A module that answers for itself: its routers, its batches, what a report says of it.

    Attributes:
        notes: what a report must say.
        alone: whether samples must go one at a time.
        no_loss: why there is no loss; None where there is one.
        recorded: whether it gives back what was recorded, so that nothing can be random.
    """

    no_loss: str | None = None
    recorded = False

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.alone = False

    @abstractmethod
    def find_routers(self) -> list[Router]:
        """Its routers, in the order of their layers."""

    @abstractmethod
    def find_experts(
        self, routers: list[Router], ids: Sequence[np.ndarray] | Sequence[Sample]
    ) -> dict[str, ExpertBlock]:
        """The experts of each router by its path; with a problem where they are no functions."""

    @abstractmethod
    def prepare(self, routers: list[Router], ids: Sequence[np.ndarray] | Sequence[Sample]) -> None:
        """Look at the probe before it is replayed."""


def describe_choice(traces: Sequence[RouterTrace], *, held: bool) -> list[str]:
    """What must be said where choices were computed and not observed.

    Args:
        traces: of all routers.
        held: whether a loss's gradient could be held against them.
    """
    computed = [trace for trace in traces if not trace.observed and not trace.problem]
    if not computed:
        return []
    router = computed[0].router
    words = (
        f"the choice of {len(computed)} of {len(traces)} routers was computed as the top "
        f"{router.top_k} of their {router.computed} scores, not observed"
    )
    if not held:
        return [f"{words}; no loss was taken that could confirm it"]
    sure = sum(trace.confirmed for trace in computed)
    if sure == len(computed):
        return [f"{words}; the loss's gradient reaches these experts and no others"]
    return [f"{words}; the loss's gradient confirms it for {sure}"]


def first_two(
    ids: Sequence[np.ndarray] | Sequence[Sample], device: torch.device, dtype: torch.dtype
) -> list[dict[str, torch.Tensor]]:
    """The first two sequences or samples of one form, each as a batch of one; [] without."""
    seen: dict[object, dict[str, torch.Tensor]] = {}
    for own in ids:
        batch = as_batch(own, device, dtype)
        form = tuple((name, tensor.shape) for name, tensor in sorted(batch.items()))
        if form in seen:
            return [seen[form], batch]
        seen[form] = batch
    return []
