"""The protocol `Describer`: describes a model's routers where config.json alone does not.

A model that a user builds with a factory of their own is described by its options and by its
tensors (`models/`). A command asks a `Describer` for the run and for the routers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from moegeo_cli.checkpoints.adapters.layout import ParameterSource
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.routers import RouterTensors
from moegeo_cli.checkpoints.weights import WeightIndex

# Says which stored tensors fill each parameter of the model that config.json builds. Adapters need
# it, since they name the model's modules, not the stored tensors.
SourceFinder = Callable[[Checkpoint, WeightIndex], Mapping[str, ParameterSource]]


class Describer(Protocol):
    """Opens the runs of a model and describes its routers.

    Attributes:
        own: whether the model is a user's own; see `Checkpoint`.
    """

    own: bool

    def open(self, path: Path | str) -> RunFolder:
        """Find the checkpoints under a path."""

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """Describe a checkpoint's routers."""

    def routers(self, index: WeightIndex, architecture: Architecture) -> Sequence[RouterTensors]:
        """Find the routers among a checkpoint's tensors."""
