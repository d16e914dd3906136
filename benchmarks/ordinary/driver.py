"""Run the plan in single-threaded worker processes; runs that are done are skipped."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from pathlib import Path

from benchmarks.ordinary.plan import Run, plan_runs


def run_all(work: Path, workers: int, only: str | None) -> None:
    """Train what is not there yet, one thread a run."""
    work.mkdir(parents=True, exist_ok=True)
    runs = [r for r in plan_runs() if only is None or only in r.name]
    runs.sort(key=lambda r: r.held_back)
    left = [(r, work) for r in runs if not (work / r.name / "final.json").exists()]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are there", flush=True)
    with get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        for name, loss, seconds in pool.imap_unordered(_train, left):
            print(f"{name}: loss {loss:.4f}, {seconds:.0f} s", flush=True)


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import warnings

    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def _train(job: tuple[Run, Path]) -> tuple[str, float, float]:
    from benchmarks.ordinary.training import train

    started = time.time()
    loss = train(*job)
    return job[0].name, loss, time.time() - started


def measure_all(work: Path, workers: int) -> None:
    """Replay what is trained and not measured yet."""
    runs = [r for r in plan_runs() if (work / r.name / "final.json").exists()]
    left = [(r, work) for r in runs if not (work / "records" / f"{r.name}.json").exists()]
    with get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        for name, seconds in pool.imap_unordered(_measure, left):
            print(f"{name}: measured in {seconds:.0f} s", flush=True)


def _measure(job: tuple[Run, Path]) -> tuple[str, float]:
    from benchmarks.ordinary.records import measure

    started = time.time()
    measure(*job)
    return job[0].name, time.time() - started
