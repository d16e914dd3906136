"""Who says what a model is that its config.json does not describe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from moegeo_cli.checkpoints.adapters.layout import Filling
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.routers import RouterTensors
from moegeo_cli.checkpoints.weights import WeightIndex

# Says how a config's module tree is filled, for adapters.
Filler = Callable[[Checkpoint, WeightIndex], Mapping[str, Filling]]


class Describer(Protocol):
    """What a model is: a user's own one, say.

    `own`: a user's own model, whose names may hold what a wrapper's look like.
    """

    own: bool

    def open(self, path: Path | str) -> RunFolder:
        """The run under a path."""

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """What is known of a checkpoint's routers."""

    def routers(self, index: WeightIndex, architecture: Architecture) -> Sequence[RouterTensors]:
        """The routers among a checkpoint's tensors."""
