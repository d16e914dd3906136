"""Models split among ranks by transformers: expert parallelism or tensor parallelism.

transformers has a plan for each model type that says which parameters are split. Every rank replays
the whole probe, in step with the others. The routers are not split: each rank has a router's whole
weight, logits and selected experts, and the whole gradient of its logits.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import torch
from torch import nn

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.opening import LAYOUT_FILES
from moegeo_cli.errors import BaselineError, UnsupportedArchitectureError, UsageError
from moegeo_cli.models.loading import load_model
from moegeo_cli.models.model_config import open_config
from moegeo_cli.models.sources import ReplayMode
from moegeo_cli.models.uneven import experts_by_layer

PLANS = {"expert": "base_model_ep_plan", "tensor": "base_model_tp_plan"}


class ParallelModels:
    """transformers' models, of which each rank holds a part. Every checkpoint is loaded anew.

    Args:
        split: "expert" for expert parallelism, "tensor" for tensor parallelism.
        world: number of ranks.
        device: device of this rank.
        dtype: dtype of the weights and the computation.
    """

    def __init__(self, split: str, world: int, device: torch.device, dtype: torch.dtype) -> None:
        self.split, self.world, self.device, self.dtype = split, world, device, dtype
        self.mode = ReplayMode(
            form="parts",
            unplanned=f"the model lies in parts on {world} ranks: their memory is not planned",
            notes=(f"model split among {world} ranks by {split}s, by its plan in transformers",),
        )

    def load(self, checkpoint: Checkpoint) -> nn.Module:
        """See `ModelSource`.

        Raises:
            UnsupportedArchitectureError: transformers has no plan to split this model type.
            UsageError: transformers' own loader cannot open the checkpoint, or the number of ranks
                does not divide the number of experts.
        """
        self._check(checkpoint)
        placed = {"distributed_config": self._config()}
        return load_model(checkpoint, self.device, self.dtype, placed=placed)

    def initialise(self, checkpoint: Checkpoint, seed: int) -> nn.Module:
        """See `ModelSource`; always refused, because transformers splits saved weights only."""
        raise BaselineError(
            "a fresh initialisation is not split among ranks",
            hint="use --baseline STEP or PATH, or leave --parallel out",
        )

    def holding(self, module: str) -> contextlib.AbstractContextManager[None]:
        """See `ModelSource`: this rank's part is always in memory."""
        return contextlib.nullcontext()

    def _config(self) -> Any:
        """The `DistributedConfig` by which transformers splits the model."""
        from transformers.distributed import DistributedConfig

        known = {field.name for field in dataclasses.fields(DistributedConfig)}
        if not {"tp_size", "tp_plan", "ep_size"} <= known:
            raise UsageError(
                "--parallel needs a newer transformers",
                found="DistributedConfig without tp_size, tp_plan or ep_size",
                hint="pip install 'transformers>=5.23'",
            )
        # Expert parallelism uses the tensor plan too, and replaces its rules for experts.
        experts = {"ep_size": self.world} if self.split == "expert" else {}
        return DistributedConfig(tp_size=self.world, tp_plan="auto", **experts)

    def _check(self, checkpoint: Checkpoint) -> None:
        if self.device.type == "cpu" and torch.accelerator.is_available():
            raise UsageError(
                "transformers splits a model over accelerators where there are some",
                found="--device cpu with --parallel",
                hint="leave --device out, or hide the accelerators from the process",
            )
        index = checkpoint.weights
        plain = index.is_plain and index.layout in LAYOUT_FILES.values()
        if not plain or experts_by_layer(checkpoint):
            raise UsageError(
                "--parallel reads checkpoints as transformers saves them",
                found=f"{checkpoint.path.name}: {index.layout}"
                + ("" if plain else ", with weights that moegeo makes"),
                hint="leave --parallel out, or save the checkpoint with model.save_pretrained",
            )
        config = open_config(checkpoint)
        kind = str(config.model_type)
        text = config.get_text_config()
        if not getattr(text, PLANS[self.split], None):
            raise UnsupportedArchitectureError(
                f"{kind} has no plan in transformers to split it by {self.split}s",
                found=f"{PLANS[self.split]} of its config class is empty",
                hint="leave --parallel out: each rank then holds the whole model",
            )
        experts = checkpoint.config_architecture.experts
        if self.split == "expert" and experts % self.world:
            raise UsageError(
                f"{experts} experts cannot be split evenly among {self.world} ranks",
                found=f"--parallel expert, model type {kind}",
                hint="start a number of ranks that divides the number of experts",
            )
