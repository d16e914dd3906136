"""Train one run from its settings, with checkpoints, a log and states to resume from.

Everything random comes from the run's seed: the initialisation, the order of the data, jitter. A
restart goes on from a state with other settings and, for a seed of its own, other data.

Legend: B sequences of a batch, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.evidence import faults
from benchmarks.evidence.models import (
    build_model,
    find_routers,
    loss_tokens,
    losses,
    save_checkpoint,
)
from benchmarks.evidence.settings import (
    BATCH,
    FRACTIONS,
    IMAGE_BATCH,
    STEPS,
    RunSettings,
    TrainSettings,
)
from benchmarks.evidence.tasks import Task, positions

LOG_EVERY = 5
OPTIMIZER_AT = 0.1  # the checkpoint that keeps its optimizer's state, for the kind `adam`


@dataclass
class State:
    """A run as it stands: enough to go on from, as `torch.save` keeps it."""

    step: int
    model: dict[str, Any]
    optimizer: dict[str, Any]
    log: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """A run in training.

    Args:
        run: its settings.
        task: its data.
        steps: of the whole run.
        data_seed: of the order of data and of jitter; None for the run's own.
        device: where it is trained. The start is the same on all, what comes of it is not.
    """

    def __init__(
        self, run: RunSettings, task: Task, steps: int = STEPS, data_seed: int | None = None,
        device: str = "cpu",
    ) -> None:  # fmt: skip
        self.run, self.task, self.steps = run, task, steps
        self.train: TrainSettings = run.train
        self.model = build_model(run.model, run.train, task, _mix(run.seed, run.base)).to(device)
        faults.spoil_start(self.model, self.train)
        faults.store_routers(self.model, self.train.router_precision)
        self.optimizer = build_optimizer(self.model, self.train)
        self.taps = faults.tap_routers(self.model, run.model, self.train)
        self.data_seed = _mix(run.seed if data_seed is None else data_seed, run.base)
        self.step, self.log = 0, list[dict[str, Any]]()
        self.broken = False  # the loss was not finite
        self._since: list[tuple[float, float]] = []
        self._orders: dict[str, np.ndarray] = {}

    def state(self) -> State:
        """A copy to go on from."""
        return State(
            self.step,
            {name: t.clone() for name, t in self.model.state_dict().items()},
            _cloned(self.optimizer.state_dict()),
            list(self.log),
        )

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state.model)
        self.optimizer.load_state_dict(_cloned(state.optimizer))
        self.step, self.log = state.step, list(state.log)

    def change(self, train: TrainSettings) -> None:
        """Train with other settings from here on."""
        self.train = train
        for tap in self.taps:
            for handle in tap.handles:
                handle.remove()
        self.taps = faults.tap_routers(self.model, self.run.model, train)
        for group, decayed in zip(self.optimizer.param_groups, (True, False, True), strict=True):
            group["weight_decay"] = train.weight_decay if decayed else 0.0

    def advance(self, until: int, watch: Callable[[Run], None] | None = None) -> None:
        """Train up to a step, or until the loss is not finite; `watch` is called after each."""
        self.model.train()
        while self.step < until and not self.broken:
            self._one_step()
            if watch is not None:
                watch(self)

    def trainer_state(self) -> dict[str, Any]:
        """What the Trainer would write of it."""
        return {
            "global_step": self.step,
            "max_steps": self.steps,
            "num_input_tokens_seen": self.step * self._batch * positions(self.task),
            "log_history": self.log,
        }

    def save(self, folder: Path) -> None:
        """A checkpoint."""
        save_checkpoint(self.model, folder, self.trainer_state())
        if self.step == round(OPTIMIZER_AT * self.steps):
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")

    @property
    def _batch(self) -> int:
        return IMAGE_BATCH if self.task.images else BATCH

    def _one_step(self) -> None:
        share = self.step / self.steps
        train, model = self.train, self.model
        if self._reaches(train.resume_at):
            self._resume_wrongly()
        rate = self._rates(share)
        inputs, labels = self._next_batch(share)
        torch.manual_seed(_mix(self.data_seed, str(self.step)))  # jitter
        tokens = loss_tokens(model, labels)
        loss = losses(model, inputs, labels).sum() / tokens
        total, places = loss, positions(self.task)
        if train.balance and train.balance_applied and share < train.balance_until:
            for tap in self.taps:
                total = total + train.balance * faults.balance_loss(tap, train.balance_over, places)
        if train.z_loss:
            total = total + train.z_loss * sum(faults.z_loss(tap) for tap in self.taps)
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), train.clip or math.inf)
        self.optimizer.step()
        faults.store_routers(model, train.router_precision)
        self._move_bias()
        self.step += 1
        value = float(loss.detach())
        self._note(value, float(norm), rate)
        if not math.isfinite(value):
            self.broken = True

    def _reaches(self, share: float) -> bool:
        return share < 1.0 and self.step == round(share * self.steps)

    def _resume_wrongly(self) -> None:
        if self.train.resume_fault == "moments":
            self.optimizer.state.clear()
        elif self.train.resume_fault == "router":
            faults.draw_routers(self.model, self.data_seed % 2**31)

    def _rates(self, share: float) -> float:
        """Set the learning rates of this step; that of all but the routers."""
        train = self.train
        done, whole = share, 1.0
        resumed = share >= train.resume_at
        if resumed and train.resume_fault == "schedule":
            done, whole = share - train.resume_at, 1.0 - train.resume_at
        warm = (done * self.steps + 1) / max(train.warmup * self.steps, 1)
        rate = train.learning_rate * min(1.0, warm)
        if train.decay:
            rate *= 0.55 + 0.45 * math.cos(math.pi * min(done / whole, 1.0))
        if share >= train.rate_jump_at:
            rate *= train.rate_jump
        if resumed and train.resume_fault in ("schedule", "moments"):
            rate *= train.resume_rate
        of_routers = train.router_rate
        if share >= train.router_rate_at:
            of_routers *= train.router_rate_after
        for group, factor in zip(self.optimizer.param_groups, (1.0, 1.0, of_routers), strict=True):
            group["lr"] = rate * factor
        return rate

    def _next_batch(self, share: float) -> tuple[torch.Tensor, torch.Tensor]:
        shifted = share >= self.train.shift_at
        split = self.task.shifted if shifted else self.task.training
        name = "shifted" if shifted else "training"
        rows_B = [self._row(name, len(split), self.step * self._batch + i)
                  for i in range(self._batch)]  # fmt: skip
        inputs, labels = split.inputs[rows_B], split.labels[rows_B]
        if self.task.images:  # shifted by up to a pixel, as the labels' images are
            generator = np.random.default_rng([self.data_seed, self.step])
            dy, dx = generator.integers(-1, 2, size=2)
            inputs = torch.roll(inputs, (int(dy), int(dx)), (2, 3))
        return inputs, labels

    def _row(self, split: str, count: int, place: int) -> int:
        """The place-th row in this run's order of a split, each epoch shuffled anew."""
        epoch, within = divmod(place, count)
        key = f"{split}:{epoch}"
        if key not in self._orders:
            generator = np.random.default_rng([self.data_seed, *key.encode()])
            self._orders = {key: generator.permutation(count)} | {
                k: v for k, v in self._orders.items() if k.endswith(f":{epoch}")
            }
        return int(self._orders[key][within])

    @torch.no_grad()
    def _move_bias(self) -> None:
        """DeepSeek's rule (arXiv 2412.19437, section 2.1.2), over the batch."""
        if not self.train.bias_rate:
            return
        for tap in self.taps:
            bias: torch.Tensor = tap.router.e_score_correction_bias  # type: ignore[assignment]
            load_E = faults.loads(tap, len(bias))
            bias.add_(self.train.bias_rate * torch.sign(load_E.mean() - load_E).to(bias))

    def _note(self, loss: float, norm: float, rate: float) -> None:
        """An entry of the log: losses and norms since the last one, as the Trainer means them."""
        self._since.append((loss, norm))
        if self.step % LOG_EVERY and math.isfinite(loss):
            return
        loss, norm = (sum(v) / len(v) for v in zip(*self._since, strict=True))
        self._since.clear()
        counts = [faults.loads(tap, self.run.model.experts) for tap in self.taps]
        with torch.no_grad():
            z = max(float(faults.z_loss(tap)) for tap in self.taps)
        self.log.append({
            "step": self.step,
            "loss": loss,
            "grad_norm": norm,
            "learning_rate": rate,
            "load_cv": max(float(c.std(unbiased=False) / c.mean()) for c in counts),
            "router_z": z,
        })  # fmt: skip


def checkpoint_steps(steps: int) -> tuple[int, ...]:
    """Where a run leaves a checkpoint: at the start and at each of the shares."""
    return (0, *(max(1, round(f * steps)) for f in FRACTIONS))


def build_optimizer(model: nn.Module, train: TrainSettings) -> torch.optim.Optimizer:
    """AdamW in three groups: matrices, vectors (not decayed), routers."""
    routers = {id(router.weight) for router in find_routers(model)}
    parameters = [p for p in model.parameters() if id(p) not in routers]
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        {"params": [r.weight for r in find_routers(model)], "weight_decay": train.weight_decay},
    ]
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=(0.9, train.beta2))


def _mix(seed: int, name: str) -> int:
    """A seed of its own for each name."""
    return int(np.random.SeedSequence([seed, *name.encode()]).generate_state(1)[0])


def _cloned(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {k: _cloned(v) for k, v in value.items()}
    return [_cloned(v) for v in value] if isinstance(value, list) else value
