"""The kind of model of a run: how its folder opens, its routers, and where models come from.

One object answers for a run wherever it is opened, inspected, measured or compared; `choosing.py`
makes it from the options. Here are the models of transformers, by their config.json; a user's own
are in `factory.py`, routers alone in `captured_inputs.py`. Nothing in the three imports torch
until a model is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.architecture import Architecture, describe_architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.folders import find_given_config
from moegeo_cli.checkpoints.hub import open_path
from moegeo_cli.checkpoints.routers import RouterTensors, check_routers
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.probes import Probe


class Models:
    """Models of transformers. Their config.json describes them fully."""

    identity: Mapping[str, Any] | None = None  # part of the key of stored measurements
    own = False  # whether they are a user's own
    unidentified: str | None = None  # why measurements cannot be kept: code that nothing tells
    samples = False  # whether they take other tensors than token ids
    whole = True  # whether all of a checkpoint counts, and not its routers alone
    config: Path | None = None  # the folder that --config gave

    def __init__(self, config: Path | str | None = None) -> None:
        self.config = None if config is None else find_given_config(config)

    def open(self, path: Path | str) -> RunFolder:
        """The run under a path.

        Raises: what opening raises.
        """
        return open_path(path, self.config)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """What a checkpoint's config and files say of its routers.

        Raises: what reading the config raises, and a family that cannot be measured.
        """
        describe_architecture(checkpoint.config)
        return checkpoint.architecture

    def routers(self, index: WeightIndex, architecture: Architecture) -> Sequence[RouterTensors]:
        """The routers among a checkpoint's tensors.

        Raises: what `check_routers` raises.
        """
        return check_routers(index, architecture)

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """Check that a checkpoint's files hold the routers that they should have.

        Raises: what `check_routers` raises.
        """
        check_routers(checkpoint.weights, architecture)

    def probe(self) -> Probe | None:
        """What replaces a probe; None if a probe is to be opened."""
        return None

    def source(self, device: Any, dtype: Any, architecture: Architecture) -> Any:
        """The `ModelSource` of these models; None for the usual one."""
        return None
