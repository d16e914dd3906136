"""Where the model of a checkpoint comes from: one checkpoint of a run after another.

Everything behind it (taps, batches, Fisher sums) takes whatever module it is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from moegeo_cli.checkpoints.folders import find_config
from moegeo_cli.replay.loading import auto_class, load_model, swap_weights


class ModelSource(Protocol):
    """Gives the models of a run's checkpoints, frozen and in evaluation mode.

    A model that was given stays as it is until the next one is asked for.
    """

    def load(self, path: Path) -> nn.Module:
        """The model with the weights that lie in `path`.

        Raises: what opening and loading raise.
        """

    def initialise(self, path: Path, seed: int) -> nn.Module:
        """The model that `path` describes, freshly initialised."""


class WholeModels:
    """transformers' models, loaded whole: built once, then given each checkpoint's weights.

    Args:
        device: where they compute.
        dtype: in which dtype.
        config: where `--config` says that config.json is, for checkpoints without their own.
    """

    def __init__(
        self, device: torch.device, dtype: torch.dtype, config: Path | None = None
    ) -> None:
        self.device, self.dtype, self.config = device, dtype, config
        self._built: nn.Module | None = None

    def load(self, path: Path) -> nn.Module:
        """See `ModelSource`."""
        place = find_config(path, self.config)
        if self._built is None:
            self._built = load_model(path, self.device, self.dtype, place)
        else:
            self._built = swap_weights(self._built, path, self.device, place)
        return self._built

    def initialise(self, path: Path, seed: int) -> nn.Module:
        """See `ModelSource`."""
        from transformers import AutoConfig

        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(
            find_config(path, self.config), trust_remote_code=False, local_files_only=True
        )
        model = auto_class(config)[0].from_config(config, dtype=self.dtype)
        self._built = None  # its buffers are not a checkpoint's: build the next one afresh
        ready: nn.Module = model.eval().requires_grad_(False).to(self.device)
        return ready
