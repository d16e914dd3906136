"""Run the ordinary trainings: `python -m benchmarks.ordinary plan | run --work DIR | ...`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from benchmarks.ordinary.driver import measure_all, run_all
from benchmarks.ordinary.files import print_files
from benchmarks.ordinary.outcomes import judge_all
from benchmarks.ordinary.plan import STEPS, plan_runs
from benchmarks.ordinary.records import collect
from benchmarks.ordinary.report import write_report

SECONDS_A_RUN = 110.0  # of one core, measured on the machine that the results are of
BUDGET = 8.0  # core-hours


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.ordinary", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plan", help="what will be trained, and its cost")
    run = commands.add_parser("run", help="train the runs that are not there yet")
    run.add_argument("--work", type=Path, required=True, help="folder of the runs")
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--only", help="runs whose name has this part")
    measure = commands.add_parser("measure", help="replay the runs that are trained")
    measure.add_argument("--work", type=Path, required=True, help="folder of the runs")
    measure.add_argument("--workers", type=int, default=2)
    files = commands.add_parser("files", help="what moegeo check says after every save")
    files.add_argument("--work", type=Path, required=True, help="folder of the runs")
    commands.add_parser("judge", help="what the verdict says of the committed records")
    report = commands.add_parser(
        "report", help="write docs/results/ordinary.md and results/saves.csv"
    )
    report.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    if options.command == "plan":
        print_plan()
    elif options.command == "run":
        run_all(options.work, options.workers, options.only)
    elif options.command == "measure":
        measure_all(options.work, options.workers)
        collect(options.work)
    elif options.command == "files":
        print_files(options.work)
    elif options.command == "report":
        sys.exit(write_report(check=options.check))
    else:
        print_judgement()


def print_plan() -> None:
    """What will be trained, counted, and its cost."""
    runs = plan_runs()
    kinds = Counter(r.mistake or "good" for r in runs)
    print(f"{len(runs)} runs of {STEPS} steps, {sum(r.held_back for r in runs)} held back")
    print(", ".join(f"{kind} {count}" for kind, count in kinds.items()))
    hours = len(runs) * SECONDS_A_RUN / 3600
    print(f"about {hours:.1f} core-hours of at most {BUDGET:g}")


def print_judgement() -> None:
    """One line a run: its losses and the verdict of every save."""
    for o in judge_all():
        behind = "" if o.behind is None else f"{o.behind:+.3f}{' worse' if o.worse else ''}"
        last = ", ".join(f"{n}={s}" for n, s in o.findings[-1].items() if s != "info")
        print(f"{o.run.name:44} {o.loss:.3f} {behind:13} {o.letters}  {last}")


if __name__ == "__main__":
    main()
