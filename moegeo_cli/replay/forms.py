"""The protocol `ModelForm`: what the replay asks of a model, whatever form it was given in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import nn

from moegeo_cli.expert_functions.blocks import ExpertBlock, find_experts
from moegeo_cli.probes import Sample
from moegeo_cli.replay.batches import carries_state
from moegeo_cli.replay.plan import RouterTrace
from moegeo_cli.replay.samples import as_batch
from moegeo_cli.routers.finding import Router

Inputs = Sequence[np.ndarray] | Sequence[Sample]


class ModelForm(Protocol):
    """Facts about a model that the replay needs; see `form_of`.

    Attributes:
        notes: sentences for the report.
        alone: whether a batch must hold only one sequence.
        stateful: whether layers carry a state along a sequence, which padding would change.
        mixes_lengths: whether sequences of different lengths may share a batch, with padding.
        runs_to_end: whether the whole forward pass must run, because it is not known what the
            model does after its last router.
        no_loss: why there is no loss; None if there is one.
        recorded: whether the model returns recorded values, so that nothing can be random.
        body: the module that contains the experts; None if only routers are known.
    """

    notes: list[str]
    alone: bool
    stateful: bool
    mixes_lengths: bool
    runs_to_end: bool
    no_loss: str | None
    recorded: bool

    @property
    def body(self) -> nn.Module | None:
        """See the attributes."""

    def find_experts(
        self, routers: list[Router], inputs: Inputs
    ) -> Mapping[str, ExpertBlock | None]:
        """The experts of each router by its path; None for a router whose experts are not found."""

    def prepare(self, routers: list[Router], inputs: Inputs) -> None:
        """Inspect the model with inputs of the probe, before the replay."""


class OfTransformers:
    """The form of a transformers model, whose code is known."""

    alone = runs_to_end = recorded = False
    no_loss: str | None = None

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.notes: list[str] = []
        self.stateful = carries_state(model)
        self.mixes_lengths = not self.stateful

    @property
    def body(self) -> nn.Module | None:
        """See `ModelForm`."""
        return self.model

    def find_experts(
        self, routers: list[Router], inputs: Inputs
    ) -> Mapping[str, ExpertBlock | None]:
        """See `ModelForm`: found by the names and classes of the modules."""
        return {router.path: find_experts(self.model, router) for router in routers}

    def prepare(self, routers: list[Router], inputs: Inputs) -> None:
        """See `ModelForm`: nothing to do."""


class ModelAdapter(nn.Module, ABC):
    """A module that stands in for a transformers model and is its own form; see `ModelForm`."""

    stateful = mixes_lengths = recorded = False
    runs_to_end = True
    no_loss: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.alone = False

    @property
    @abstractmethod
    def body(self) -> nn.Module | None:
        """See `ModelForm`."""

    @abstractmethod
    def find_routers(self) -> list[Router]:
        """Its routers, in the order of their layers."""

    @abstractmethod
    def find_experts(
        self, routers: list[Router], inputs: Inputs
    ) -> Mapping[str, ExpertBlock | None]:
        """See `ModelForm`; a block has a `problem` if its experts cannot be called one by one."""

    @abstractmethod
    def prepare(self, routers: list[Router], inputs: Inputs) -> None:
        """See `ModelForm`."""


def form_of(model: nn.Module) -> ModelForm:
    """The form of a model: the model itself if it is an adapter, else `OfTransformers`."""
    return model if isinstance(model, ModelAdapter) else OfTransformers(model)


def describe_choice(traces: Sequence[RouterTrace], *, held: bool) -> list[str]:
    """A note for the report if choices of experts were computed instead of observed.

    Args:
        traces: the traces of all routers.
        held: whether the gradient of a loss could confirm the choices.
    """
    computed = [trace for trace in traces if not trace.observed and not trace.problem]
    if not computed:
        return []
    router = computed[0].router
    words = (
        f"the choice of {len(computed)} of {len(traces)} routers was computed as the top "
        f"{router.top_k} of their {router.choice_scoring} scores, not observed"
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
    """The first two sequences or samples with equal shapes, each as a batch of one; else []."""
    seen: dict[object, dict[str, torch.Tensor]] = {}
    for own in ids:
        batch = as_batch(own, device, dtype)
        form = tuple((name, tensor.shape) for name, tensor in sorted(batch.items()))
        if form in seen:
            return [seen[form], batch]
        seen[form] = batch
    return []
