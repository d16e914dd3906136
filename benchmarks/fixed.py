"""Measure the cost of an analysis before its first token: `python -m benchmarks.fixed [SIZE]`.

Processor seconds of whole processes, interleaved: a bare script in which transformers builds the
model and loads its weights, and `moegeo analyze` of the same checkpoint with a probe of 512
tokens, its files checked, nothing kept.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.cost import SIZES
from benchmarks.models import VOCABULARY, build_model

BARE = """
import sys, torch
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
"""


def processor_seconds(command: list[str]) -> float:
    """What a process and its children took of the processor."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="?", default="deep", choices=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        model, probe = str(Path(scratch, "model")), Path(scratch, "probe.jsonl")
        build_model(SIZES[options.size]).save_pretrained(model)
        rows = np.random.default_rng(0).integers(0, VOCABULARY, (32, 16)).tolist()
        probe.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
        analyze = ["-m", "moegeo_cli", "analyze", model, "--probe", str(probe), "--baseline",
                   "none", "--no-cache", "--format", "json"]  # fmt: skip
        found = [
            (processor_seconds(["-c", BARE, model]), processor_seconds(analyze))
            for _ in range(options.rounds)
        ]
    bare, own = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"{options.size}: bare script {bare:.1f} s, moegeo analyze {own:.1f} s: {own / bare:.2f}")


if __name__ == "__main__":
    main()
