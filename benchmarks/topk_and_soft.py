"""Test whether experts differ more under top-k than under soft routing, as [GA] claims.

`python -m benchmarks.topk_and_soft --output FOLDER`

Trainings that differ in routing alone: each token to 2 of 8 experts, or to all 8 by the whole
softmax (`num_experts_per_tok` 8, which renormalises over all). A pair of one seed shares its
initial weights, its text and the order of it. Neither has a balance loss: of the soft model it
would be a constant; a third arm, top-2 with the balance loss of the healthy sample, tells whether
it matters. What is trained or measured already is kept, so that it can be interrupted.

Each checkpoint is seen in two ways. "own": at the tokens that the model dispatches to an expert,
by its combine weights; of the soft model these are all tokens. "same": at all tokens, by the whole
routing distribution, which is one definition for both. Since the two ways already differ at step
0, where a pair has the same weights, the change since then is compared as well.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from moegeo_cli import experts
from sample_checkpoints.recipes import RECIPES, Recipe
from sample_checkpoints.train import STEPS, train

HEALTHY = RECIPES["healthy-qwen3-moe"]
ARMS = {"top-2": (2, 0.0), "soft": (8, 0.0), "top-2 balanced": (2, HEALTHY.balance)}
VIEWS = {
    "own": {"tokens": "routed", "weights": "topk"},
    "same": {"tokens": "all", "weights": "soft"},
}
NAMES = ("alignment_size", "mean_jacobian_alignment", "overlap_input", "distance_input",
         "overlap_output", "distance_output")  # fmt: skip
TOKENS = 8192
WEIGHTS = Path("checkpoint-0", "model.safetensors")


def recipe_of(arm: str) -> Recipe:
    chosen, balance = ARMS[arm]
    config = {**HEALTHY.config, "num_experts_per_tok": chosen}
    return replace(HEALTHY, name=arm, config=config, balance=balance, optimizer_at=None)


def place(output: Path, arm: str, seed: int) -> Path:
    return output / f"{arm.replace(' ', '-')}-{seed}"


def measure(run: Path, step: int, view: str) -> dict[str, Any]:
    """Means over the layers of one checkpoint."""
    record = experts(run / f"checkpoint-{step}", max_tokens=TOKENS, cache=False, **VIEWS[view])
    found: dict[str, Any] = {"loss": record.loss.value}
    for name in NAMES:
        metrics = [layer.metrics[name] for layer in record.layers]
        found[name] = float(np.mean([m.value for m in metrics]))
        found[f"{name}_null"] = [m.null_value for m in metrics]
    found["load"] = max(e.load * layer.experts for layer in record.layers for e in layer.expert)
    return found


def collect(output: Path, seeds: list[int]) -> dict[str, Any]:
    """Every number, trained and measured where it is not there yet."""
    file = output / "measured.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for seed in seeds:  # seed by seed, so that an interrupted run has whole seeds
        for arm in ARMS:
            run = place(output, arm, seed)
            if not run.exists():
                print(f"training {run.name}", file=sys.stderr, flush=True)
                with contextlib.redirect_stdout(io.StringIO()):
                    train(recipe_of(arm), seed, run)
            for step in (0, STEPS):
                for view in VIEWS:
                    key = f"{arm}/{seed}/{step}/{view}"
                    if key not in found:
                        print(f"measuring {key}", file=sys.stderr, flush=True)
                        found[key] = measure(run, step, view)
                        file.write_text(json.dumps(found, indent=1))
        starts = {(place(output, arm, seed) / WEIGHTS).read_bytes() for arm in ARMS}
        if len(starts) > 1:
            raise SystemExit(f"seed {seed}: the arms do not start from the same weights")
    return found


def paired(values: np.ndarray) -> str:
    """Mean over seeds with its 95% interval (Student's t), and how many are above 0."""
    mean, error = values.mean(), values.std(ddof=1) / np.sqrt(len(values))
    half = error * student.ppf(0.975, len(values) - 1)
    above = int((values > 0).sum())
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] {above}/{len(values)} above 0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--output", type=Path, default=Path("build/topk-and-soft"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    found = collect(options.output, options.seeds)

    def at(arm: str, step: int, view: str, name: str) -> np.ndarray:
        return np.array([found[f"{arm}/{s}/{step}/{view}"][name] for s in options.seeds])

    print(f"{len(options.seeds)} seeds, means over layers, at step {STEPS} (at step 0)")
    for view in VIEWS:
        print(f"{view} tokens")
        for name in ("loss", "load", *NAMES):
            cells = []
            for arm in ARMS:
                now, before = (at(arm, step, view, name).mean() for step in (STEPS, 0))
                cells.append(f"{arm} {now:.3f} ({before:.3f})")
            print(f"  {name:24}", "  ".join(cells))
    for one, other in (("top-2", "soft"), ("top-2 balanced", "soft")):
        for view in VIEWS:
            print(f"{one} less {other}, {view} tokens: at step {STEPS}; of the change since step 0")
            for name in ("loss", *NAMES):
                now = at(one, STEPS, view, name) - at(other, STEPS, view, name)
                before = at(one, 0, view, name) - at(other, 0, view, name)
                print(f"  {name:24} {paired(now)};  {paired(now - before)}")


if __name__ == "__main__":
    main()
