"""Test whether a balance loss suppresses the shared direction of router inputs, as [MY] claims.

`python -m benchmarks.shared_direction --output FOLDER`

Trainings that differ in the balance loss alone, from the same initial weights and on the same text:
the arms "top-2" and "top-2 balanced" of `benchmarks.topk_and_soft`, trained here where that folder
does not have them. What is measured already is kept, so that it can be interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.topk_and_soft import WEIGHTS, paired, place, recipe_of
from moegeo_cli import routing
from sample_checkpoints.train import STEPS, train

ARMS = ("top-2 balanced", "top-2")
AT = (0, 100, STEPS)
NAMES = ("response_relative", "response", "constant_share", "shared_energy", "collapse",
         "overlap_unrelated", "coactivation_excess")  # fmt: skip


def measure(checkpoint: Path) -> dict[str, Any]:
    """Each layer's numbers."""
    record = routing(checkpoint, cache=False)
    found: dict[str, Any] = {n: [x.metrics[n].value for x in record.layers] for n in NAMES}
    found["geometry"] = [
        g.spearman.value
        for x in record.layers
        for g in x.geometry
        if (g.pairs, g.hidden, g.usage) == ("across", "cosine", "distribution")
    ]
    found["findings"] = [f.name for f in record.findings]
    return found


def collect(output: Path, seeds: list[int]) -> dict[str, Any]:
    """Every number, trained and measured where it is not there yet."""
    file = output / "shared-direction.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for seed in seeds:
        for arm in ARMS:
            run = place(output, arm, seed)
            if not run.exists():
                print(f"training {run.name}", file=sys.stderr, flush=True)
                with contextlib.redirect_stdout(io.StringIO()):
                    train(recipe_of(arm), seed, run)
            for step in AT:
                key = f"{arm}/{seed}/{step}"
                if key not in found:
                    print(f"measuring {key}", file=sys.stderr, flush=True)
                    found[key] = measure(run / f"checkpoint-{step}")
                    file.write_text(json.dumps(found, indent=1))
        if len({(place(output, arm, seed) / WEIGHTS).read_bytes() for arm in ARMS}) > 1:
            raise SystemExit(f"seed {seed}: the arms do not start from the same weights")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--output", type=Path, default=Path("build/topk-and-soft"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    found = collect(options.output, options.seeds)

    def at(arm: str, step: int, name: str) -> np.ndarray:
        """Seeds × layers."""
        return np.array([found[f"{arm}/{s}/{step}"][name] for s in options.seeds])

    print(f"{len(options.seeds)} seeds; means over seeds, by layer in brackets")
    for name in (*NAMES, "geometry"):
        print(name)
        for arm in ARMS:
            cells = []
            for step in AT:
                values = at(arm, step, name)
                layers = ", ".join(f"{v:.2f}" for v in values.mean(axis=0))
                cells.append(f"step {step}: {values.mean():.3f} [{layers}]")
            print(f"  {arm:15}", "  ".join(cells))
        one, other = (at(arm, STEPS, name).mean(axis=1) for arm in ARMS)
        print(f"  {ARMS[0]} less {ARMS[1]} at step {STEPS}: {paired(one - other)}")
    for arm in ARMS:
        listed = [f for s in options.seeds for f in found[f"{arm}/{s}/{STEPS}"]["findings"]]
        print(arm, "findings:", {name: listed.count(name) for name in sorted(set(listed))})


if __name__ == "__main__":
    main()
