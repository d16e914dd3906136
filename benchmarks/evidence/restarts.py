"""Restart flagged runs at their earliest alarm, under each arm and two seeds of data.

Which runs are flagged follows from the tables and the policy, so this plan is made anew, the same,
by whoever has them.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.evidence import faults
from benchmarks.evidence.alarms import first_alarms
from benchmarks.evidence.arms import ARMS, FLAGGED, SEEDS
from benchmarks.evidence.labels import measure
from benchmarks.evidence.models import losses
from benchmarks.evidence.plan import plan_runs
from benchmarks.evidence.settings import RunSettings, Size
from benchmarks.evidence.table import read_runs, read_table
from benchmarks.evidence.tasks import Task, load_task
from benchmarks.evidence.training import Run, State

RESULTS = "restarts"
KINDS = 4
DRAW_SEED = 7


@dataclass(frozen=True)
class Restart:
    """One run, one arm, one seed of data, from the checkpoint at `fraction`.

    An arm that rewinds begins at `clean`, the last checkpoint without the alarm.
    """

    run: RunSettings
    kind: str
    arm: str
    seed: int
    fraction: float
    clean: float

    @property
    def name(self) -> str:
        """Of its record."""
        return f"{self.run.name}-{self.kind}-{self.arm}-{self.seed}"


def plan_restarts() -> list[Restart]:
    """All restarts: the four kinds with most failed runs, 24 runs each, arms that apply."""
    alarms = first_alarms(read_runs(), read_table("points"))
    runs = {run.name: run for run in plan_runs()}
    restarts = []
    for kind in commonest_kinds(alarms):
        for name, fraction, clean in choose_flagged(alarms, kind):
            run = runs[name]
            for arm in ARMS[kind]:
                if arm.applies(run.train, run.model):
                    restarts += [
                        Restart(run, kind, arm.name, seed, fraction, clean) for seed in SEEDS
                    ]
    return restarts


def commonest_kinds(alarms: pd.DataFrame) -> list[str]:
    """The kinds whose flagged runs failed most often, by count."""
    failed = Counter(alarms.loc[alarms["failed"], "alarm"])
    return [kind for kind, _ in sorted(failed.items(), key=lambda k: (-k[1], k[0]))[:KINDS]]


def choose_flagged(alarms: pd.DataFrame, kind: str) -> list[tuple[str, float, float]]:
    """Flagged runs of a kind, with where; one of each configuration first, then second seeds."""
    own = alarms[alarms["alarm"] == kind].sort_values("name")
    order = np.random.default_rng([DRAW_SEED, *kind.encode()]).permutation(len(own))
    drawn = own.iloc[order]
    again = drawn.groupby("configuration").cumcount()
    chosen = drawn.iloc[np.argsort(again.to_numpy(), kind="stable")][:FLAGGED]
    return [
        (str(r["name"]), float(r["alarm_at"]), float(r["clean_at"])) for _, r in chosen.iterrows()
    ]


def restart_path(work: Path, restart: Restart) -> Path:
    """Where a restart's record lies."""
    return work / RESULTS / f"{restart.name}.json"


def carry_out(restart: Restart, work: Path, size: Size = Size()) -> dict[str, Any]:  # noqa: B008
    """Restart one run and measure its end.

    Raises:
        FileNotFoundError: the states of the main run are not in the study's folder.
    """
    started, steps = time.process_time(), size.steps
    run, task = size.of(restart.run), load_task(restart.run.task)
    arm = next(a for a in ARMS[restart.kind] if a.name == restart.arm)
    states: dict[int, dict[str, Any]] = torch.load(
        work / "states" / f"{run.name}.pt", weights_only=True, map_location=size.device
    )
    step = round((restart.clean if arm.rewind else restart.fraction) * steps)
    trainer = Run(run, task, steps, data_seed=restart.seed, device=size.device)
    trainer.restore(State(**states[step]))
    changed = arm.change(run.train, run.model)
    if arm.touch is not None:
        arm.touch(trainer.model, trainer.taps, expert_loads(trainer, task))
    trainer.change(changed)
    trainer.advance(steps)
    record: dict[str, Any] = {
        "name": restart.name, "run": run.name, "kind": restart.kind, "arm": restart.arm,
        "seed": restart.seed, "fraction": restart.fraction, "from_step": step,
        "broken": trainer.broken,
    }  # fmt: skip
    if not trainer.broken:
        outcome = measure(steps, trainer.model, trainer.taps, run.model.experts, task.labels,
                          task.validation)  # fmt: skip
        record |= outcome.to_dict()
    record["seconds"] = round(time.process_time() - started, 2)
    path = restart_path(work, restart)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record))
    part.replace(path)
    return record


@torch.no_grad()
def expert_loads(trainer: Run, task: Task) -> list[torch.Tensor]:
    """By layer, how often each expert is chosen on validation data."""
    trainer.model.eval()
    total = [torch.zeros(trainer.run.model.experts, dtype=torch.float64) for _ in trainer.taps]
    losses(trainer.model, task.validation.inputs, task.validation.labels)
    for load_E, tap in zip(total, trainer.taps, strict=True):
        load_E += faults.loads(tap, trainer.run.model.experts)
    trainer.model.train()
    return total


def restart_table(work: Path) -> pd.DataFrame:
    """A row a restart."""
    keep = ("name", "run", "kind", "arm", "seed", "fraction", "from_step", "broken", "loss",
            "load_entropy", "dead_share", "collapsed", "seconds")  # fmt: skip
    records = [json.loads(p.read_text()) for p in sorted((work / RESULTS).glob("*.json"))]
    return pd.DataFrame([{key: r.get(key) for key in keep} for r in records])
