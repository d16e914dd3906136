"""Run the plan in single-threaded worker processes; runs that have a record are skipped."""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from benchmarks.evidence.plan import plan_runs
from benchmarks.evidence.settings import STEPS, RunSettings, Size

# Core-seconds that a run of this plan took on the machine that the results are of, training and
# measuring, and those of a restart; only used to say beforehand what a plan will cost.
SECONDS_A_RUN, SECONDS_A_RESTART = 23.3, 8.3
MAIN_BUDGET, RESTART_BUDGET = 4.0, 8.0  # core-hours


def print_plan() -> None:
    """What will be run, counted, and its cost."""
    runs = plan_runs()
    kinds = Counter(run.kind for run in runs)
    print(f"{len(runs)} main runs of {STEPS} steps, {len({r.configuration for r in runs})} "
          f"configurations of {len({r.base for r in runs})} bases; "
          f"{sum(r.untouched for r in runs)} runs untouched until the end")  # fmt: skip
    for task, count in sorted(Counter(run.task for run in runs).items()):
        print(f"  {task}: {count}")
    print("  " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
    hours = len(runs) * SECONDS_A_RUN / 3600
    print(f"main runs: about {hours:.1f} core-hours of at most {MAIN_BUDGET:g}")
    from benchmarks.evidence.arms import most_restarts

    restarts = most_restarts()
    hours = restarts * SECONDS_A_RESTART / 3600
    print(f"restarts: at most {restarts}, about {hours:.1f} core-hours of at most "
          f"{RESTART_BUDGET:g}")  # fmt: skip


def run_all(work: Path, workers: int, size: Size, only: str | None = None) -> None:
    """The main runs that have no record yet; bases' healthy runs first within a task."""
    from benchmarks.evidence.main_runs import record_path

    runs = [r for r in plan_runs() if only is None or only in r.name]
    left = [r for r in runs if not record_path(work, r.name).exists()]
    print(f"{len(runs) - len(left)} of {len(runs)} runs are done", flush=True)
    _spread([(r, work, size) for r in left], _one_run, workers)


def restart_all(work: Path, workers: int, size: Size, only: str | None = None) -> None:
    """The restarts that have no record yet; all with the first seed of data before the second."""
    from benchmarks.evidence.restarts import plan_restarts, restart_path

    restarts = [r for r in plan_restarts() if only is None or only in r.name]
    restarts.sort(key=lambda r: r.seed)
    left = [r for r in restarts if not restart_path(work, r).exists()]
    print(f"{len(restarts) - len(left)} of {len(restarts)} restarts are done", flush=True)
    _spread([(r, work, size) for r in left], _one_restart, workers)


def collect(work: Path) -> None:
    """Tables of all records."""
    from benchmarks.evidence.restarts import restart_table
    from benchmarks.evidence.table import build_tables, write_table

    for name, table in build_tables(work).items():
        write_table(name, table)
        print(f"{name}: {len(table)} rows")
    restarts = restart_table(work)
    if len(restarts):
        write_table("restarts", restarts)
        print(f"restarts: {len(restarts)} rows")


def _spread(jobs: list, work, workers: int) -> None:  # type: ignore[no-untyped-def, type-arg]
    started, seconds = time.time(), list[float]()
    with get_context("spawn").Pool(workers, initializer=_one_thread) as pool:
        for done, (name, taken) in enumerate(pool.imap_unordered(work, jobs), 1):
            seconds.append(taken)
            print(
                f"{done}/{len(jobs)} {name} {taken:.0f} s; median {statistics.median(seconds):.0f}"
                f" s, {sum(seconds) / 3600:.2f} core-hours, {(time.time() - started) / 60:.0f} min",
                flush=True,
            )


def _one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    import warnings

    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def _one_run(job: tuple[RunSettings, Path, Size]) -> tuple[str, float]:
    from benchmarks.evidence.main_runs import carry_out

    return job[0].name, carry_out(*job)["seconds"]


def _one_restart(job) -> tuple[str, float]:  # type: ignore[no-untyped-def]
    from benchmarks.evidence.restarts import carry_out

    return job[0].name, carry_out(*job)["seconds"]
