"""Measure how cost grows with tokens, layers, experts, checkpoints: `python -m benchmarks.growth`.

Each row doubles one thing and leaves the rest; the ratio is of medians over interleaved
rounds, so 2 is linear. Checkpoints are counted through the store: one new checkpoint beside
N known ones.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.models import Size, build_measurer, build_model, build_probe
from moegeo_cli import analyze
from moegeo_cli.measuring.layers import checkpoint_record
from moegeo_cli.settings import Settings

BASE = Size(128, 4, 16, 2, 128)
TOKENS = 8192


def analysis(size: Size, tokens: int) -> Callable[[], None]:
    """A checkpoint measured and summed up, without loading."""
    model, probe, settings = build_model(size), build_probe(tokens), Settings()

    def run() -> None:
        arrays = build_measurer(model, probe, settings).measure_model(model, Path())
        checkpoint_record(
            arrays, probe, settings, step=None, path="", fingerprint="", progress={}
        )  # fmt: skip

    return run


def time_interleaved(contenders: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def grow(what: str, rounds: int) -> None:
    steps = [1, 2, 4]
    contenders = {}
    for factor in steps:
        if what == "tokens":
            contenders[str(TOKENS * factor)] = analysis(BASE, TOKENS * factor)
        else:
            value = getattr(BASE, what) * factor
            contenders[str(value)] = analysis(dataclasses.replace(BASE, **{what: value}), TOKENS)
    found = time_interleaved(contenders, rounds)
    first = next(iter(found.values()))
    print(
        f"  {what:12}", "  ".join(f"{n}: {s:.2f} s ({s / first:.2f} x)" for n, s in found.items())
    )


def grow_checkpoints(counts: list[int], rounds: int) -> None:
    """Seconds for one new checkpoint beside `n` whose measurements are kept."""
    size = Size(64, 2, 8, 2, 64)
    with tempfile.TemporaryDirectory() as work:
        model = build_model(size)
        source = Path(work, "model")
        model.save_pretrained(source)
        probe = Path(work, "probe.jsonl")
        rows = (s.input_ids.tolist() for s in build_probe(TOKENS).sequences)
        probe.write_text("".join(f'{{"input_ids": {row}}}\n' for row in rows))
        out = []
        for count in counts:
            run = Path(work, f"run-{count}")
            for step in range(count):
                shutil.copytree(source, run / f"checkpoint-{step}")
            analyze(run, probe=probe)
            seconds = []
            for turn in range(rounds):
                new = run / f"checkpoint-{count + turn}"
                shutil.copytree(source, new)
                config = new / "config.json"  # another fingerprint: nothing is known of it
                config.write_text(config.read_text().replace("{", f'{{"note": {turn},', 1))
                start = time.perf_counter()
                analyze(run, probe=probe)
                seconds.append(time.perf_counter() - start)
                shutil.rmtree(new)
            out.append(f"{count}: {statistics.median(seconds):.2f} s")
    print("  one new checkpoint beside", "  ".join(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpoints", type=int, nargs="*", default=[2, 10, 50])
    options = parser.parse_args()
    print(f"Qwen3-MoE {BASE}, {TOKENS:,} tokens, empirical Fisher with intervals")
    for what in ("tokens", "layers", "experts"):
        grow(what, options.rounds)
    if options.checkpoints:
        grow_checkpoints(options.checkpoints, options.rounds)


if __name__ == "__main__":
    main()
