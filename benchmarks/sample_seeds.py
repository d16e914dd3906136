"""Count the verdicts on a sample's recipe trained with other seeds.

`python -m benchmarks.sample_seeds --output FOLDER`

Trains each recipe with seeds that were not shipped (what is trained already is kept, so that
it can be interrupted) and counts verdicts. The run that is judged against a reference is
judged with the healthy run of the same seed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

from moegeo_cli import analyze
from sample_checkpoints.recipes import RECIPES

REFERENCE = "healthy-qwen3-moe"


def train_missing(recipe: str, seed: int, output: Path) -> Path:
    folder = output / f"{recipe}-{seed}"
    if not folder.exists():
        subprocess.run(
            [sys.executable, "-m", "sample_checkpoints.train", "--recipe", recipe,
             "--seed", str(seed), "--output", str(output)],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--output", type=Path, default=Path("build/sample-seeds"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # seed by seed, so that an interrupted run has whole seeds
    for seed in options.seeds:
        for recipe in RECIPES:
            print(f"{recipe}, seed {seed}", file=sys.stderr, flush=True)
            train_missing(recipe, seed, options.output)
    for recipe in RECIPES:
        alone: Counter[str] = Counter()
        against: Counter[str] = Counter()
        names: Counter[str] = Counter()
        for seed in options.seeds:
            folder = options.output / f"{recipe}-{seed}"
            run = analyze(folder)
            assert run.verdict is not None
            alone[f"routing {run.verdict.routing}, performance {run.verdict.performance}"] += 1
            names.update(f.name for f in run.verdict.findings
                         if f.state == "active" and f.severity != "info")  # fmt: skip
            if RECIPES[recipe].model_type == RECIPES[REFERENCE].model_type:
                held = analyze(folder, reference=options.output / f"{REFERENCE}-{seed}")
                assert held.verdict is not None
                against[f"performance {held.verdict.performance}"] += 1
        print(f"{recipe}: {len(options.seeds)} seeds")
        for title, counts in (
            ("alone", alone), ("findings", names), ("against healthy", against)
        ):  # fmt: skip
            if counts:
                print(f"  {title}: {', '.join(f'{k}: {n}' for k, n in sorted(counts.items()))}")


if __name__ == "__main__":
    main()
