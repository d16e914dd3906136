"""The verdict on each run at each save, and how the run ended.

A run ended worse where its held-out loss lies over its twin's by more than three standard
deviations between good seeds of one setting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.ordinary.plan import MISTAKE_AT, SAVE_EVERY, STEPS, Run, plan_runs
from benchmarks.ordinary.records import read_records
from moegeo_cli.records import CheckpointRecord, Verdict
from moegeo_cli.verdict import judge

DEVIATIONS = 3.0
FROM = 0.2  # share of training after which a good run should be left alone
# Findings that name each mistake's cause.
CAUSES = {
    "flag-off": {"balancing-inactive"},
    "frozen-router": {"router-frozen"},
    "k1-renormalised": {"router-no-gradient"},
    "rate-x10": {"learning-rate-high", "loss-diverged"},
    "spike": {"loss-spike", "loss-diverged"},
    "labels-shifted": {"probe-unfit"},
    "experts-copied": {"experts-identical"},
    "bias-not-saved": {"bias-unused"},
}
ONCE = ("spike", "experts-copied")  # what happens in the middle; the rest shows from the start
LETTERS = {"healthy": ".", "watch": "w", "failing": "F", "inconclusive": "?"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """A run as judged. `verdicts` and `findings` have an entry a save, step 0 first."""

    run: Run
    loss: float
    behind: float | None
    worse: bool | None
    steps: tuple[int, ...]
    verdicts: tuple[str, ...]
    findings: tuple[dict[str, str], ...]
    losses: tuple[float | None, ...]

    @property
    def letters(self) -> str:
        """The verdict of each save as a letter."""
        return "".join(LETTERS[v] for v in self.verdicts)

    @property
    def after(self) -> tuple[int, ...]:
        """Places of the saves after the first fifth of training."""
        return tuple(i for i, s in enumerate(self.steps) if s > FROM * STEPS)

    @property
    def shows_at(self) -> int:
        """The first save at which the mistake can be seen."""
        return MISTAKE_AT if self.run.mistake in ONCE else SAVE_EVERY

    def first(self, names: set[str] | None = None, severity: str = "watch") -> int | None:
        """The first step at which a finding (one of `names`, or any) is at least so severe."""
        severe = {"watch": ("watch", "failing"), "failing": ("failing",)}[severity]
        for step, found in zip(self.steps, self.findings, strict=True):
            own = {n for n, s in found.items() if s in severe}
            if own & names if names is not None else own:
                return step
        return None

    @property
    def stopped_at(self) -> int | None:
        """Where the default gate would have stopped it: the first failing save."""
        return self.first(severity="failing")


def judge_all() -> list[Outcome]:
    """Every run that is there, judged at every save with the shipped rules."""
    records = read_records()
    runs = [r for r in plan_runs() if r.name in records]
    spread = seed_deviation({r.name: records[r.name][0] for r in runs}, runs)
    found = []
    for run in runs:
        loss, record = records[run.name]
        judged = judge(record).checkpoints
        verdicts = [_verdict(c) for c in judged]
        twin = records.get(run.twin)
        behind = None if run.mistake is None or twin is None else loss - twin[0]
        found.append(
            Outcome(
                run, loss, behind,
                None if behind is None or spread is None else behind > DEVIATIONS * spread,
                tuple(int(c.step or 0) for c in judged),
                tuple(v.status for v in verdicts),
                tuple({f.name: f.severity for f in v.findings} for v in verdicts),
                tuple(c.loss.value for c in judged),
            )
        )  # fmt: skip
    return found


def seed_deviation(losses: dict[str, float], runs: Sequence[Run]) -> float | None:
    """Standard deviation of the final loss between two good seeds of one setting, pooled."""
    pairs: dict[tuple[str, str], list[float]] = {}
    for run in runs:
        if run.mistake is None:
            pairs.setdefault((run.model, run.text), []).append(losses[run.name])
    squares = [(own[0] - own[1]) ** 2 / 2.0 for own in pairs.values() if len(own) == 2]
    return math.sqrt(sum(squares) / len(squares)) if squares else None


def save_table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row a run and save."""
    rows = [
        {
            "run": o.run.name,
            "step": step,
            "probe_loss": loss,
            "verdict": verdict,
            "findings": ";".join(f"{n}={s}" for n, s in sorted(found.items())),
        }
        for o in outcomes
        for step, loss, verdict, found in zip(
            o.steps, o.losses, o.verdicts, o.findings, strict=True
        )
    ]
    return pd.DataFrame(rows)


def _verdict(checkpoint: CheckpointRecord) -> Verdict:
    assert checkpoint.verdict is not None
    return checkpoint.verdict
