"""Compare an analysis on an accelerator and the CPU: `python -m benchmarks.gpu [small|large]`.

Says whether the numbers agree with the CPU's, and what an analysis costs beside the bare
model there. Without an accelerator it says so and exits 2: no figure is made up.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time

import torch

from benchmarks.cost import CONTENDERS, RATIOS, SIZES, analysis
from benchmarks.models import build_model, build_probe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("size", nargs="?", choices=SIZES, default="large")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no accelerator here: nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    size = SIZES[options.size]
    print(f"{torch.cuda.get_device_name()}, {platform.machine()}, torch {torch.__version__},"
          f" Qwen3-MoE {size}, {options.tokens:,} tokens, float32")  # fmt: skip
    model, small = build_model(size), build_probe(2048)
    on_cpu = analysis(model, small, "empirical")
    model = model.to("cuda")
    on_gpu = analysis(model, small, "empirical")
    worst = max(
        abs(a.value - b.value) / max(abs(a.value), 1e-12)
        for one, other in zip(on_cpu.layers, on_gpu.layers, strict=True)
        for name in ("fsi", "information", "heterogeneity_relative")
        for a, b in [(one.metrics[name], other.metrics[name])]
        if a.value is not None and b.value is not None
    )
    print(f"  cpu against cuda, 2,048 tokens: largest relative difference {worst:.1e}")
    probe = build_probe(options.tokens)
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(options.rounds + 1):
        for name, run in CONTENDERS.items():
            start = time.perf_counter()
            run(model, probe)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    for name, base in RATIOS.items():
        own, other = (statistics.median(seconds[n]) for n in (name, base))
        print(f"  {name:12} {own:.3f} s, bare {base} {other:.3f} s: {own / other:.2f} x")


if __name__ == "__main__":
    main()
