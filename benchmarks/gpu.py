"""The same analysis on an accelerator: `python -m benchmarks.gpu [--size large]`.

Says whether the numbers agree with the CPU's, and what an analysis costs beside the bare
model there. Without an accelerator it says so and exits 2: no figure is made up.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.models import LARGE, SMALL, VOCABULARY, build_measurer, build_model, build_probe
from moegeo_cli.measurement.layers import checkpoint_record
from moegeo_cli.measurement.settings import Settings
from moegeo_cli.probes import Probe
from moegeo_cli.replay.batches import make_batches, plan_batches
from moegeo_cli.replay.routers import find_routers

SIZES = {"small": SMALL, "large": LARGE}


def analysis(model: Any, probe: Probe, device: str, fisher: str) -> Any:
    settings = Settings(fisher=fisher, device=device)
    arrays = build_measurer(model, probe, settings).measure_loaded(Path())
    return checkpoint_record(
        arrays, probe, settings, step=None, path="", fingerprint="", progress={}
    )  # fmt: skip


def bare(model: Any, probe: Probe, device: str, *, backward: bool) -> None:
    weights = [r.weight_ED for r in find_routers(model)]
    ids = [s.input_ids for s in probe.sequences]
    plan = plan_batches([len(i) for i in ids], None)
    for weight in weights:
        weight.requires_grad_(backward)
    with torch.set_grad_enabled(backward):
        for batch in make_batches(ids, [None] * len(ids), plan, torch.device(device)):
            logits = model(input_ids=batch.input_ids_BN, use_cache=False).logits
            if backward:
                loss = F.cross_entropy(
                    logits.reshape(-1, VOCABULARY).float(), batch.targets_BN.reshape(-1),
                    ignore_index=-100, reduction="sum",
                )  # fmt: skip
                torch.autograd.grad(loss, weights)
    for weight in weights:
        weight.requires_grad_(False)
    torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="large")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no accelerator here: nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    size = SIZES[options.size]
    print(f"{torch.cuda.get_device_name()}, {platform.machine()}, torch {torch.__version__},"
          f" Qwen3-MoE {size}, {options.tokens:,} tokens, float32")  # fmt: skip
    model = build_model(size)
    small = build_probe(2048)
    on_cpu = analysis(model, small, "cpu", "empirical")
    model = model.to("cuda")
    on_gpu = analysis(model, small, "cuda", "empirical")
    worst = max(
        abs(a.value - b.value) / max(abs(a.value), 1e-12)
        for one, other in zip(on_cpu.layers, on_gpu.layers, strict=True)
        for name in ("fsi", "information", "heterogeneity_relative")
        for a, b in [(one.metrics[name], other.metrics[name])]
    )
    print(f"  cpu against cuda, 2,048 tokens: largest relative difference {worst:.1e}")
    probe = build_probe(options.tokens)
    pairs = {"categorical": False, "empirical": True}
    seconds: dict[str, list[float]] = {}
    for turn in range(options.rounds + 1):
        for fisher, backward in pairs.items():
            for name, run in (
                (f"bare {fisher}", lambda b=backward: bare(model, probe, "cuda", backward=b)),
                (fisher, lambda f=fisher: analysis(model, probe, "cuda", f)),
            ):
                start = time.perf_counter()
                run()
                if turn:
                    seconds.setdefault(name, []).append(time.perf_counter() - start)
    for fisher in pairs:
        own, base = (statistics.median(seconds[n]) for n in (fisher, f"bare {fisher}"))
        print(f"  {fisher:12} {own:.3f} s, the bare model {base:.3f} s: {own / base:.2f} x")


if __name__ == "__main__":
    main()
