"""Measure the start time of the command line: `python -m benchmarks.startup [RUN]`.

Medians over fresh processes: `moegeo --help`, and a rerun of a run whose measurements are all
kept, less what importing its modules takes.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "sample_checkpoints" / "healthy-qwen3-moe"
RERUN = """
import sys, time
start = time.perf_counter()
from moegeo_cli.cli.app import run
from moegeo_cli import analyze
import moegeo_cli.commands.analyze.api, moegeo_cli.reports.json_report
imported = time.perf_counter()
code = run(["analyze", sys.argv[1], "--format", "json", "--output", sys.argv[2]])
print(imported - start, time.perf_counter() - imported, "torch" in sys.modules, code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", default=SAMPLE)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--report", type=Path, default=Path("build/startup.json"))
    options = parser.parse_args()
    options.report.parent.mkdir(parents=True, exist_ok=True)
    bare, help_page, rerun, imports = [], [], [], []
    command = [sys.executable, "-c", RERUN, str(options.run), str(options.report)]
    subprocess.run(command, check=True, capture_output=True)  # measures what is not kept yet
    for _ in range(options.rounds):
        for seconds, arguments in ((bare, ["-c", "pass"]), (help_page, ["-m", "moegeo_cli", "-h"])):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        assert told[2:] == ["False", "0"], "a rerun may not import torch"
        imports.append(float(told[0]))
        rerun.append(float(told[1]))
    print(f"medians of {options.rounds} processes, seconds")
    print(f"  python -c pass             {statistics.median(bare):.3f}")
    print(f"  moegeo --help              {statistics.median(help_page):.3f}")
    print(f"  unchanged rerun            {statistics.median(rerun):.3f}"
          f"  after {statistics.median(imports):.3f} of imports, without torch"
          f"  ({options.run.name})")  # fmt: skip


if __name__ == "__main__":
    main()
