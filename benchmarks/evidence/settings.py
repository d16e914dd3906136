"""The settings of a run: its model, its training, and its fault.

Everything that a run does follows from its `RunSettings`, so a run is named by them and its seed.

Legend: E experts, K chosen per token, D width, F inner width of an expert.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

STEPS, BATCH = 640, 8  # sequences of 64 tokens: 327,680 tokens a run
IMAGE_BATCH = 64  # images of 16 positions
# Where a run leaves a checkpoint, as shares of training; the first four are decisions.
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
DECISIONS = FRACTIONS[:4]


@dataclass(frozen=True, slots=True)
class Size:
    """How large the study is done: the one that was, or more where an accelerator is at hand.

    `scale` multiplies the models' widths, `steps` are of a run, `device` is torch's.
    """

    device: str = "cpu"
    steps: int = STEPS
    scale: int = 1

    def of(self, run: RunSettings) -> RunSettings:
        """A run at this size."""
        model = run.model
        larger = dataclasses.replace(
            model, width=model.width * self.scale, hidden=model.hidden * self.scale
        )
        return dataclasses.replace(run, model=larger)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The architecture.

    `kind` is mixtral or qwen3_moe (softmax, weights renormalised or not), glm4_moe (sigmoid with a
    selection bias) or digits (softmax, vision).
    """

    kind: str
    experts: int
    top_k: int
    width: int
    hidden: int
    layers: int


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a run is trained. Shares are of the whole of training.

    Args:
        learning_rate: the peak, of AdamW.
        warmup: share over which the rate rises.
        decay: cosine to a tenth at the end, else constant.
        clip: the gradient norm is clipped to it; 0 for not.
        beta2: of AdamW.
        weight_decay: of matrices.
        balance: coefficient of the balance loss of each layer; for sigmoid routers too.
        balance_applied: whether the loss that the config asks for is added.
        balance_over: "batch", or "sequence": then each sequence is balanced by itself.
        balance_until: share after which the balance loss is off.
        bias_rate: step of the selection bias (sigmoid routers).
        router_rate: the routers' learning rate over that of the rest.
        router_rate_after: the same from `router_rate_at` on.
        router_rate_at: share.
        router_scale: initial router weights are multiplied by it.
        router_noise: jitter of the router's input in training.
        router_precision: float32, bfloat16 or float8: inputs and stored weights of routers.
        z_loss: coefficient of the z-loss.
        capacity: slots of an expert over its fair share in training; 0 for no limit.
        bad_experts: share of the experts of each layer whose weights begin too large.
        bad_scale: how many times.
        rate_jump: the learning rate is multiplied by it from `rate_jump_at` on.
        rate_jump_at: share.
        shift_at: share after which other data come; 1 for never.
        resume_at: share at which the run is stopped and resumed wrongly; 1 for never.
        resume_fault: "moments" (optimizer state lost), "router" (routers lost and drawn anew),
            "schedule" (warm-up and decay begin again).
        resume_rate: after a "schedule" or "moments" resume the rate is multiplied by it.
    """

    learning_rate: float
    warmup: float = 0.04
    decay: bool = True
    clip: float = 1.0
    beta2: float = 0.95
    weight_decay: float = 0.01
    balance: float = 0.01
    balance_applied: bool = True
    balance_over: str = "batch"
    balance_until: float = 1.0
    bias_rate: float = 0.0
    router_rate: float = 1.0
    router_rate_after: float = 1.0
    router_rate_at: float = 1.0
    router_scale: float = 1.0
    router_noise: float = 0.0
    router_precision: str = "float32"
    z_loss: float = 0.0
    capacity: float = 0.0
    bad_experts: float = 0.0
    bad_scale: float = 1.0
    rate_jump: float = 1.0
    rate_jump_at: float = 1.0
    shift_at: float = 1.0
    resume_at: float = 1.0
    resume_fault: str = ""
    resume_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class RunSettings:
    """One run: `configuration` names base and cause, `base` what its healthy seeds share."""

    name: str
    base: str
    configuration: str
    kind: str
    task: str
    seed: int
    untouched: bool
    model: ModelSettings
    train: TrainSettings

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RunSettings:
        """Back from plain values."""
        return cls(**{**data, "model": ModelSettings(**data["model"]),
                      "train": TrainSettings(**data["train"])})  # fmt: skip
