"""`Models`: the form in which the models of a run are given.

It opens a run's folder, finds the routers in the files, and makes the `ModelSource` that loads the
models. `choosing.py` makes the object from the options. `Models` itself is for models of
transformers, described by config.json. `factory.OwnFactory` is for a user's own models,
`captured_inputs.CapturedInputs` for routers without a model. None of the three imports torch until
a model is loaded.
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
    """Models of transformers, described by config.json.

    Attributes:
        identity: what identifies the models in the key of stored measurements, beside the
            checkpoint; None if config.json is enough.
        own: whether they are a user's own.
        store_problem: why measurements cannot be stored, because their code cannot be identified;
            None if they can.
        accepts_samples: whether a probe may hold samples: input tensors other than token ids.
        routers_only: whether only the routers of a checkpoint are measured.
        config: the folder that --config gave; None without the option.
    """

    identity: Mapping[str, Any] | None = None
    own = False
    store_problem: str | None = None
    accepts_samples = False
    routers_only = False
    config: Path | None = None

    def __init__(self, config: Path | str | None = None) -> None:
        self.config = None if config is None else find_given_config(config)

    def open(self, path: Path | str) -> RunFolder:
        """The run under a path.

        Raises:
            MoegeoError: the folder cannot be opened; see `checkpoints.hub.open_path`.
        """
        return open_path(path, self.config)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """The architecture of a checkpoint's routers, from its config and files.

        Raises:
            ShapeError: the config contradicts itself or the files.
            UnsupportedArchitectureError: routers of this model type cannot be measured.
        """
        describe_architecture(checkpoint.config)
        return checkpoint.architecture

    def routers(self, index: WeightIndex, architecture: Architecture) -> Sequence[RouterTensors]:
        """The routers among a checkpoint's tensors.

        Raises:
            MoegeoError: as `check_routers`.
        """
        return check_routers(index, architecture)

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """Check that a checkpoint's files hold the routers that its architecture describes.

        Raises:
            MoegeoError: as `check_routers`.
        """
        check_routers(checkpoint.weights, architecture)

    def probe(self) -> Probe | None:
        """The probe that comes with the models; None if the probe of the options is opened."""
        return None

    def source(self, device: Any, dtype: Any, architecture: Architecture) -> Any:
        """The `ModelSource` of these models; None if `fitting.choose_source` chooses it."""
        return None
