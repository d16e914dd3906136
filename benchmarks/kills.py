"""Kill an analysis at random moments and check its files: `python -m benchmarks.kills --times 100`.

Analyzes a small run in a process of its own, kills it at a random moment, and looks: no file
may be half-written under its final name, and the next whole analysis must give the bytes that an
undisturbed one gives. Every fifth time two processes work on one store at once and one is killed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE = Path(__file__).parents[1] / "sample_checkpoints" / "healthy-qwen3-moe"


def command(run: Path, output: Path) -> list[str]:
    return [sys.executable, "-m", "moegeo_cli", "analyze", str(run), "--max-tokens", "8192",
            "--format", "json", "--output", str(output)]  # fmt: skip


def whole(run: Path, output: Path) -> bytes:
    """An analysis that nobody disturbs."""
    subprocess.run(command(run, output), check=True, capture_output=True)
    return output.read_bytes()


def half_written(folder: Path) -> list[str]:
    """Files under their final names that cannot be read whole."""
    wrong = []
    for path in folder.rglob("*.json"):
        try:
            json.loads(path.read_text())
        except ValueError:
            wrong.append(str(path.relative_to(folder)))
    return wrong


def kill_once(run: Path, output: Path, longest: float, chance: random.Random, *, two: bool) -> None:
    """Start an analysis, or two, and kill the first at a random moment."""
    started = [
        subprocess.Popen(command(run, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2 if two else 1)
    ]
    time.sleep(chance.uniform(0.0, longest))
    started[0].send_signal(signal.SIGKILL)
    codes = [process.wait() for process in started]
    if two and codes[1] != 0:
        raise SystemExit(f"the analysis beside a killed one ended with {codes[1]}")


def kills(times: int, checkpoints: int, seed: int) -> dict[str, int]:
    """How often an analysis was killed, finished before, and whether anything was wrong after."""
    found = {"killed": 0, "two at once": 0, "half-written": 0, "other bytes": 0}
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as work:
        run = Path(work, "run")
        for step in [0, 100, 200, 300, 400][:checkpoints]:
            shutil.copytree(SAMPLE / f"checkpoint-{step}", run / f"checkpoint-{step}")
        output = Path(work, "report.json")
        start = time.perf_counter()
        expected = whole(run, output)
        longest = time.perf_counter() - start
        for time_no in range(times):
            shutil.rmtree(run / ".moegeo")
            output.unlink(missing_ok=True)
            two = time_no % 5 == 4
            kill_once(run, output, longest, chance, two=two)
            found["killed"] += 1
            found["two at once"] += two
            wrong = half_written(run / ".moegeo") if (run / ".moegeo").exists() else []
            if output.exists() and output.read_bytes() != expected:
                wrong.append(output.name)
            found["half-written"] += len(wrong)
            found["other bytes"] += whole(run, output) != expected
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--checkpoints", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = kills(options.times, options.checkpoints, options.seed)
    print(", ".join(f"{name} {count}" for name, count in found.items()))
    sys.exit(1 if found["half-written"] or found["other bytes"] else 0)


if __name__ == "__main__":
    main()
