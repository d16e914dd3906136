"""Run the steps of the study. Each step continues where it was interrupted.

python -m benchmarks.evidence plan                 what will be run, and what it will cost
python -m benchmarks.evidence run --work DIR       the main runs
python -m benchmarks.evidence restart --work DIR   the restarts
python -m benchmarks.evidence collect --work DIR   the results as tables, in results/
python -m benchmarks.evidence report               tables and figures of docs/results/evidence.md
python -m benchmarks.evidence regenerate           the data files that the verdict reads
python -m benchmarks.evidence strict               what the strictest reading of collapse predicts

Where an accelerator is at hand, `run` and `restart` take --device, --steps and --scale; the tables
then hold those runs, and all that follows is the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> None:
    """Parse and dispatch; torch is imported by what needs it alone."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.evidence", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "step", choices=("plan", "run", "restart", "collect", "report", "regenerate", "strict")
    )
    parser.add_argument("--work", type=Path, help="the study's folder: records, states, runs")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="where runs are trained: cpu, cuda")
    parser.add_argument("--steps", type=int, default=640, help="of a run")
    parser.add_argument("--scale", type=int, default=1, help="times the models' widths")
    parser.add_argument("--only", help="runs whose name contains this")
    parser.add_argument("--check", action="store_true",
                        help="change nothing, fail where something would")  # fmt: skip
    options = parser.parse_args()
    if options.step in ("run", "restart", "collect") and options.work is None:
        parser.error("--work is needed")
    from benchmarks.evidence.settings import Size

    size = Size(options.device, options.steps, options.scale)
    if options.step == "plan":
        from benchmarks.evidence.driver import print_plan

        print_plan()
    elif options.step == "run":
        from benchmarks.evidence.driver import run_all

        run_all(options.work, options.workers, size, options.only)
    elif options.step == "restart":
        from benchmarks.evidence.driver import restart_all

        restart_all(options.work, options.workers, size, options.only)
    elif options.step == "collect":
        from benchmarks.evidence.driver import collect

        collect(options.work)
    elif options.step == "strict":
        from benchmarks.evidence.strict import print_strict

        print_strict()
    elif options.step == "report":
        from benchmarks.evidence.report import write_report

        sys.exit(write_report(check=options.check))
    else:
        from benchmarks.evidence.regeneration import regenerate

        sys.exit(regenerate(check=options.check))


if __name__ == "__main__":
    main()
