"""Where the model of a checkpoint comes from: one checkpoint of a run after another.

Everything behind it (taps, batches, Fisher sums) takes whatever module it is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from moegeo_cli.replay.loading import auto_class, language_config, load_model, swap_weights


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
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._built: nn.Module | None = None

    def load(self, path: Path) -> nn.Module:
        """See `ModelSource`."""
        if self._built is None:
            self._built = load_model(path, self.device, self.dtype)
        else:
            self._built = swap_weights(self._built, path, self.device)
        return self._built

    def initialise(self, path: Path, seed: int) -> nn.Module:
        """See `ModelSource`."""
        from transformers import AutoConfig

        torch.manual_seed(seed)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        config = language_config(config)
        model = auto_class(config)[0].from_config(config, dtype=self.dtype)
        self._built = None  # its buffers are not a checkpoint's: build the next one afresh
        ready: nn.Module = model.eval().requires_grad_(False).to(self.device)
        return ready
