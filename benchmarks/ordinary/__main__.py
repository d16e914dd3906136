"""`python -m benchmarks.ordinary plan | run --work DIR | ...`: the ordinary trainings."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

from benchmarks.ordinary.plan import STEPS, Run, plan_runs

SECONDS_A_RUN = 150.0  # of one core, measured on the machine that the results are of
BUDGET = 8.0  # core-hours


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.ordinary", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", help="what will be trained, and its cost")
    run = commands.add_parser("run", help="train the runs that are not there yet")
    run.add_argument("--work", type=Path, required=True, help="folder of the runs")
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--only", help="runs whose name has this part")
    options = parser.parse_args()
    if options.command == "plan":
        print_plan()
    elif options.command == "run":
        run_all(options.work, options.workers, options.only)


def print_plan() -> None:
    """What will be trained, counted, and its cost."""
    runs = plan_runs()
    kinds = Counter(r.mistake or "good" for r in runs)
    print(f"{len(runs)} runs of {STEPS} steps, {sum(r.held_back for r in runs)} held back")
    print(", ".join(f"{kind} {count}" for kind, count in kinds.items()))
    hours = len(runs) * SECONDS_A_RUN / 3600
    print(f"about {hours:.1f} core-hours of at most {BUDGET:g}")


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


if __name__ == "__main__":
    main()
