"""Record what `moegeo check` finds in each run after every save, from the files alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from benchmarks.ordinary.plan import plan_runs
from moegeo_cli import check
from moegeo_cli.checkpoints.discover import open_run


def print_files(work: Path) -> None:
    """Findings above info by kind of run: how many runs and saves have each.

    Args:
        work: folder of the trained runs.
    """
    runs: Counter[str] = Counter()
    saves: Counter[str] = Counter()
    found: dict[str, Counter[str]] = {}
    named: dict[str, set[str]] = {}
    for run in plan_runs():
        kind = run.mistake or "good"
        steps = [c.step for c in open_run(work / run.name).checkpoints if c.step is not None]
        runs[kind] += 1
        saves[kind] += len(steps)
        for last in range(1, len(steps) + 1):
            verdict = check(work / run.name, steps=steps[:last], cache=False).verdict
            assert verdict is not None
            for finding in verdict.findings:
                if finding.severity != "info" and finding.state == "active":
                    label = f"{finding.name}, {finding.severity}"
                    found.setdefault(kind, Counter())[label] += 1
                    named.setdefault(f"{kind} {label}", set()).add(run.name)
    for kind in runs:
        words = [
            f"{label}: {len(named[f'{kind} {label}'])} runs, {count} saves"
            for label, count in found.get(kind, Counter()).items()
        ]
        print(f"{kind}: {runs[kind]} runs, {saves[kind]} saves; {'; '.join(words) or 'nothing'}")
