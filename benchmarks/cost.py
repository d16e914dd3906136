"""Measure the cost of an analysis beside the bare model: `python -m benchmarks.cost [SIZE|RUN]`.

The cost is marginal: the time of a larger probe minus that of a smaller one, so that one-time work
does not count. Figures are medians over interleaved rounds, with the same model, dtype, batches and
threads on both sides. Before each pair the smaller probe is run once untimed, so that threads and
memory of the previous contender do not count. --memory measures peak memory, each contender in a
process of its own. All contenders keep freed blocks as the command line does
(`models/memory/allocator.py`). --processor-time, with one thread, counts the process's own time,
which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.models import (
    DEEP,
    LARGE,
    SMALL,
    WIDE,
    build_measurer,
    build_model,
    build_probe,
    open_sample,
)
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.measuring.layers import checkpoint_record
from moegeo_cli.models.memory.allocator import keep_freed_blocks
from moegeo_cli.probes import Probe
from moegeo_cli.process import mark_own_process
from moegeo_cli.records import CheckpointRecord
from moegeo_cli.replay.batches import make_batches, plan_batches
from moegeo_cli.routers.finding import find_routers
from moegeo_cli.settings import Settings

SIZES = {"small": SMALL, "large": LARGE, "deep": DEEP, "wide": WIDE}
# name -> what it stands beside
RATIOS = {"categorical": "forward", "empirical": "forward+backward"}


def bare(model: Any, probe: Probe, *, backward: bool) -> None:
    """The model alone, with the batches that an analysis makes."""
    routers = [r.weight_ED for r in find_routers(model)]
    ids = [s.input_ids for s in probe.sequences]
    for weight in routers:
        weight.requires_grad_(backward)
    plan, device = plan_batches([len(i) for i in ids], None), next(model.parameters()).device
    with torch.set_grad_enabled(backward):
        for batch in make_batches(ids, [None] * len(ids), plan, device):
            logits = model(input_ids=batch.input_ids_BN, use_cache=False).logits
            if backward:
                targets_N = batch.targets_BN.reshape(-1)
                loss = F.cross_entropy(
                    logits.reshape(-1, logits.shape[-1]).float(), targets_N, ignore_index=-100,
                    reduction="sum",
                )  # fmt: skip
                torch.autograd.grad(loss, routers)
    for weight in routers:
        weight.requires_grad_(False)
    if device.type == "cuda":
        torch.cuda.synchronize()


def analysis(model: Any, probe: Probe, fisher: str) -> CheckpointRecord:
    """Replay, all routing metrics, Fisher sums and intervals, where the model is."""
    settings = Settings(fisher=fisher, device=next(model.parameters()).device.type)
    arrays = build_measurer(model, probe, settings).measure_model(model, Checkpoint(Path()))
    return checkpoint_record(
        arrays, probe, settings, step=None, path="", fingerprint="", progress={}
    )  # fmt: skip


CONTENDERS: dict[str, Callable[[Any, Probe], Any]] = {
    "forward": lambda model, probe: bare(model, probe, backward=False),
    "categorical": lambda model, probe: analysis(model, probe, "categorical"),
    "forward+backward": lambda model, probe: bare(model, probe, backward=True),
    "empirical": lambda model, probe: analysis(model, probe, "empirical"),
}


def open_subject(subject: str, tokens: Sequence[int]) -> tuple[Any, list[Probe]]:
    """A model and probes of these sizes: random ones, or those of a real run."""
    if subject in SIZES:
        return build_model(SIZES[subject]), [build_probe(n) for n in tokens]
    return open_sample(Path(subject), tokens)


def measure_time(
    subject: str, tokens: Sequence[int], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Marginal seconds of each contender, round by round; the first round is not counted."""
    model, probes = open_subject(subject, tokens)
    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for turn in range(rounds + 1):
        for name, run in CONTENDERS.items():
            seconds = []
            for probe in (probes[0], *probes):
                start = clock()
                run(model, probe)
                seconds.append(clock() - start)
            if turn:
                found[name].append(seconds[2] - seconds[1])
    return found


def peak_bytes() -> int:
    """Peak resident memory. Not getrusage's: that one starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1]) * 1024


def measure_memory(subject: str, tokens: int) -> dict[str, int]:
    """Peak bytes of each contender, each in its own process."""
    found = {}
    for name in CONTENDERS:
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.cost", subject, "--peak-of", name,
             "--tokens", "0", str(tokens), "--threads", str(torch.get_num_threads())],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found[name] = int(out.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "subject", nargs="?", default="small", help=f"{', '.join(SIZES)}, or a run like the samples"
    )
    parser.add_argument("--tokens", type=int, nargs=2, default=(2048, 16384))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    mark_own_process()
    keep_freed_blocks()
    if options.peak_of:
        model, [probe] = open_subject(options.subject, options.tokens[1:])
        CONTENDERS[options.peak_of](model, probe)
        print(peak_bytes())
        return
    what = f"Qwen3-MoE {SIZES[options.subject]}" if options.subject in SIZES else options.subject
    print(f"{what}, float32, {options.threads} threads, {platform.machine()} CPU,"
          f" torch {torch.__version__}")  # fmt: skip
    print(f"marginal cost of {options.tokens[1] - options.tokens[0]:,} tokens,"
          f" median of {options.rounds} interleaved rounds")  # fmt: skip
    clock = time.process_time if options.processor_time else time.perf_counter
    found = measure_time(options.subject, options.tokens, options.rounds, clock)
    for name, base in RATIOS.items():
        ratios = np.array(found[name]) / np.array(found[base])
        seconds = [f"{n} {np.median(found[n]):.2f} s" for n in (name, base)]
        whole = np.median(found[name]) / np.median(found[base])
        print(f"  {name:12} / bare {base:17} {whole:.3f}"
              f"  (rounds: {', '.join(f'{r:.3f}' for r in sorted(ratios))}; {', '.join(seconds)})",
              flush=True)  # fmt: skip
    if options.memory:
        peaks = measure_memory(options.subject, options.tokens[1])
        for name, base in RATIOS.items():
            extra = peaks[name] - peaks[base]
            print(f"  {name:12} peak {peaks[name] / 2**20:,.0f} MiB, bare {base}"
                  f" {peaks[base] / 2**20:,.0f} MiB: {extra / peaks[base]:+.1%}")  # fmt: skip


if __name__ == "__main__":
    main()
