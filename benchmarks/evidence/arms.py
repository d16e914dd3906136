"""The interventions tried on a flagged run (arms), as changes of its training settings.

A kind of failure is what the alarm says: the finding at the earliest alarm. Each has its control,
which goes on as before with other data, and at most six arms that the catalogue names for it. The
cause stays in place except where an arm is its remedy.

Legend: E experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.evidence.faults import RouterTap
from benchmarks.evidence.models import expert_weights, find_routers
from benchmarks.evidence.settings import ModelSettings, TrainSettings

FLAGGED, SEEDS = 24, (101, 102)
DEAD_LOAD = 0.05
Change = Callable[[TrainSettings, ModelSettings], TrainSettings]
Touch = Callable[[nn.Module, list[RouterTap], list[torch.Tensor]], None]


@dataclass(frozen=True)
class Arm:
    """One intervention: its catalogue id, other settings, a touch of the weights, a rewind.

    `touch` is given the model, its taps, and by layer the load of each expert on validation data.
    `applies` says whether the arm means anything for a run.
    """

    name: str
    change: Change = lambda train, model: train
    touch: Touch | None = None
    rewind: bool = False
    applies: Callable[[TrainSettings, ModelSettings], bool] = lambda train, model: True


def _sigmoid(model: ModelSettings) -> bool:
    return model.kind == "glm4_moe"


def _balance(train: TrainSettings, model: ModelSettings) -> TrainSettings:
    """Ten times the balance loss over the batch, or three times the bias rate, and switched on."""
    if _sigmoid(model):
        return dataclasses.replace(train, bias_rate=max(3 * train.bias_rate, 0.003))
    return dataclasses.replace(train, balance=max(10 * train.balance, 0.01), balance_applied=True,
                               balance_over="batch", balance_until=1.0)  # fmt: skip


def _rate(factor: float) -> Change:
    return lambda train, model: dataclasses.replace(
        train, learning_rate=train.learning_rate * factor
    )


def _router_rate(train: TrainSettings, model: ModelSettings) -> TrainSettings:
    return dataclasses.replace(train, router_rate=train.router_rate * 0.1)


def _clip(train: TrainSettings, model: ModelSettings) -> TrainSettings:
    return dataclasses.replace(train, clip=1.0 if not train.clip else 0.25 * train.clip)


def _z(train: TrainSettings, model: ModelSettings) -> TrainSettings:
    return dataclasses.replace(train, z_loss=1e-3)


def _jitter(train: TrainSettings, model: ModelSettings) -> TrainSettings:
    return dataclasses.replace(train, router_noise=0.01)


def _milder_data(train: TrainSettings, model: ModelSettings) -> TrainSettings:
    return dataclasses.replace(train, learning_rate=train.learning_rate * 0.3)


@torch.no_grad()
def shrink_routers(model: nn.Module, taps: list[RouterTap], loads: list[torch.Tensor]) -> None:
    """Router weights × 0.2."""
    for router in find_routers(model):
        router.weight.mul_(0.2)  # type: ignore[operator, union-attr]


@torch.no_grad()
def revive(model: nn.Module, taps: list[RouterTap], loads: list[torch.Tensor]) -> None:
    """Each dead expert becomes a copy, a little disturbed, of one of the most used."""
    generator = torch.Generator().manual_seed(0)
    for router, parameters, load_E in zip(find_routers(model), expert_weights(model), loads,
                                          strict=True):  # fmt: skip
        dead = torch.nonzero(load_E < DEAD_LOAD * load_E.mean())[:, 0].tolist()
        busy = load_E.argsort(descending=True)[: max(1, len(load_E) // 4)].tolist()
        for place, expert in enumerate(dead):
            source = busy[place % len(busy)]
            for tensor in (*parameters, router.weight):
                row: torch.Tensor = tensor[source]  # type: ignore[index]
                noise = torch.randn(row.shape, generator=generator).to(row) * row.std() * 0.1
                tensor[expert] = row + noise  # type: ignore[index]


CONTROL = Arm("control")
BALANCE = Arm("raise-balance-loss", _balance, applies=lambda train, model: not _sigmoid(model))
BIAS = Arm("raise-bias-rate", _balance, applies=lambda train, model: _sigmoid(model))
SHRINK = Arm("router-weights", touch=shrink_routers)
SLOW_ROUTER = Arm("lower-router-rate", _router_rate)
REVIVE = Arm("revive-dead-experts", _balance, revive)
JITTER = Arm("jitter", _jitter)
Z_LOSS = Arm("z-loss", _z)
CLIP = Arm("gradient-clipping", _clip)
LOWER_RATE = Arm("learning-rate", _rate(0.3))
HIGHER_RATE = Arm("higher-learning-rate", _rate(3.0))
REWIND_BALANCE = Arm("rewind", _balance, rewind=True)
REWIND_RATE = Arm("rewind", _milder_data, rewind=True)

# At most six apply to a run beside its control: of BALANCE and BIAS one.
ARMS: Mapping[str, tuple[Arm, ...]] = {
    "loss-spike": (CONTROL, LOWER_RATE, CLIP, Z_LOSS, SLOW_ROUTER, REWIND_RATE),
    "router-collapse": (
        CONTROL, BALANCE, BIAS, SHRINK, SLOW_ROUTER, REVIVE, JITTER, REWIND_BALANCE,
    ),
    "loss-behind-reference": (
        CONTROL, LOWER_RATE, HIGHER_RATE, CLIP, BALANCE, BIAS, SLOW_ROUTER, REWIND_RATE,
    ),
    "dead-experts": (CONTROL, REVIVE, BALANCE, BIAS, SHRINK, SLOW_ROUTER, JITTER),
}  # fmt: skip
ARMS_A_RUN = 6


def most_restarts() -> int:
    """Restarts where every kind has as many flagged runs and arms as it may."""
    return FLAGGED * len(SEEDS) * len(ARMS) * (1 + ARMS_A_RUN)
