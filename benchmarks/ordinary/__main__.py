"""`python -m benchmarks.ordinary plan | run --work DIR | ...`: the ordinary trainings."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from benchmarks.ordinary.driver import run_all
from benchmarks.ordinary.plan import STEPS, plan_runs

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


if __name__ == "__main__":
    main()
