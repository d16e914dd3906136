"""Running figures of the training log against a slow reading of each prefix of it."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import pytest

from moegeo_cli.verdict import judge
from moegeo_cli.verdict.training_log import WINDOW, TrainingFigures
from tests.verdict.conftest import checkpoint, run_of


def make_log(seed: int, count: int) -> list[dict[str, Any]]:
    """A falling loss with jumps; some entries lack a loss, a rate or a finite value."""
    rng = np.random.default_rng(seed)
    log: list[dict[str, Any]] = []
    for place in range(count):
        loss = 2 + 4 * np.exp(-place / 20) + 0.1 * rng.normal()
        loss *= 1 + 3 * (rng.random() < 0.05)
        entry: dict[str, Any] = {"step": 10 * (place - place % 3), "loss": float(loss)}
        if rng.random() < 0.1:
            del entry["loss"]
        if rng.random() < 0.5:
            entry["learning_rate"] = float(rng.random())
        log.append(entry)
    if seed % 2 and count:
        log[count // 2] |= {"loss": None, "nonfinite": ["loss"]}
    return log


def slow(log: list[dict[str, Any]], step: int, limit: float) -> dict[str, Any]:
    """The same by reading the entries up to a step from the first."""
    entries = [e for e in log if e["step"] <= step]
    losses = [(e["step"], e["loss"]) for e in entries if isinstance(e.get("loss"), float)]
    values = [v for _, v in losses]
    levels = [statistics.median(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)]
    jumps = [
        (losses[i][0], values[i] / statistics.median(values[i - WINDOW : i]) - 1)
        for i in range(WINDOW, len(values))
    ]
    over = [(at, rise) for at, rise in jumps if rise > limit]
    rates = [e["learning_rate"] for e in entries if "learning_rate" in e]
    return {
        "losses": len(losses),
        "level": levels[-1] if levels else None,
        "lowest": min(levels[:-1], default=None),
        "spike": (over[0][0], max(rise for _, rise in over)) if over else None,
        "broken": next((e["step"] for e in entries if "nonfinite" in e), None),
        "peak": max(rates, default=None),
    }


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [0, 1, WINDOW, WINDOW + 1, 60])
def test_figures_up_to_a_step_are_those_of_its_entries(seed: int, count: int) -> None:
    log = make_log(seed, count)
    figures = TrainingFigures(log)
    for step in range(-10, 10 * count + 20, 10):
        for limit in (0.1, 0.5, 2.5):
            now = figures.until(step)
            found = {
                "losses": now.losses, "level": now.level, "lowest": now.lowest_before,
                "spike": now.spike(limit), "peak": now.peak_rate,
                "broken": None if now.first_nonfinite is None else now.first_nonfinite["step"],
            }  # fmt: skip
            assert found == slow(log, step, limit)


def test_a_long_run_with_a_long_log_is_judged_at_once() -> None:
    """It took 5 s while every checkpoint read the whole log."""
    log = [{"step": n, "loss": 2.0 + 1 / (1 + n), "learning_rate": 1e-4} for n in range(8000)]
    run = run_of(*[checkpoint(40 * n) for n in range(200)], log=log)
    start = time.perf_counter()
    judge(run)
    assert time.perf_counter() - start < 2
