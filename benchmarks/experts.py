"""Measure the cost of the experts lens for one layer: `python -m benchmarks.experts`.

A layer of random SwiGLU experts with random tokens: what is timed does not depend on the weights.
Memory is the peak of the resident set beyond what it was with the weights loaded.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from moegeo_cli.commands.experts.alignment import align_pairs
from moegeo_cli.commands.experts.layers import measure_layer
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.commands.experts.tokens import LayerTokens
from moegeo_cli.expert_functions.blocks import find_experts
from moegeo_cli.expert_functions.functions import open_experts
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.routers.finding import find_routers

GROUPS, KEPT = 32, 4096


def build_tokens(
    experts: int, top_k: int, width: int, inner: int, kept: int = KEPT, device: str = "cpu"
) -> LayerTokens:
    """A layer of random experts, and random tokens that are routed at random."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64, hidden_size=width, num_hidden_layers=1, num_experts=experts,
        num_experts_per_tok=top_k, moe_intermediate_size=inner, intermediate_size=64,
        num_attention_heads=8, num_key_value_heads=4, head_dim=16, decoder_sparse_step=1,
    )  # fmt: skip
    model = Qwen3MoeForCausalLM(config).eval().requires_grad_(False).to(device)
    model.set_experts_implementation("eager")
    block = find_experts(model, find_routers(model)[0])
    assert block is not None
    generator = np.random.default_rng(0)
    scores_NE = generator.random((kept, experts))
    weight_NE = np.where(scores_NE >= np.sort(scores_NE)[:, [-top_k]], scores_NE, 0.0)
    mass_NE = (weight_NE > 0).astype(float)
    return LayerTokens(
        block=block,
        x_ND=torch.randn(kept, width).to(device),
        group_N=np.arange(kept) * GROUPS // kept,
        groups=GROUPS,
        mass_NE=mass_NE,
        weight_NE=weight_NE,
        scale_NE=None,
        tokens_E=mass_NE.sum(0),
        load_E=mass_NE.mean(0) / top_k,
        mass_E=weight_NE.sum(0) / weight_NE.sum(),
        fisher_trace_E="a benchmark takes no loss",
    )


def alignment(tokens: LayerTokens, count: int) -> Callable[[], None]:
    """All pairs at so many tokens, by random directions."""
    experts = open_experts(tokens.block, tokens.x_ND[:4])
    settings = ExpertSettings(jacobian_tokens=count, directions=4)

    def run() -> None:
        align_pairs(experts, tokens, settings)

    return run


def resident() -> float:
    """GiB of the process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def watch(run: Callable[[], None]) -> tuple[float, float, float]:
    """Seconds, those of the processor, and the peak of memory beyond the start, in GiB."""
    before, peak, done = resident(), [0.0], threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    thread = threading.Thread(target=look)
    thread.start()
    start, worked = time.perf_counter(), time.process_time()
    run()
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    done.set()
    thread.join()
    return seconds, worked, max(peak[0] - before, 0.0)


def grow(name: str, contenders: dict[str, Callable[[], None]], rounds: int) -> None:
    """Median processor seconds of interleaved rounds, and their ratios to the first."""
    seconds: dict[str, list[float]] = {key: [] for key in contenders}
    for turn in range(rounds + 1):
        for key, run in contenders.items():
            start = time.process_time()
            run()
            if turn:
                seconds[key].append(time.process_time() - start)
    found = {key: statistics.median(values) for key, values in seconds.items()}
    first = next(iter(found.values()))
    print(f"  {name:9}", "  ".join(f"{k}: {s:.2f} s ({s / first:.2f} x)" for k, s in found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--device", default="cpu", help="of the large layer")
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, float32, 4 directions a token, null included")
    small = build_tokens(16, 4, 512, 256)
    grow("tokens", {str(n): alignment(small, n) for n in (256, 512, 1024)}, options.rounds)
    layers = {e: build_tokens(e, 4, 512, 256) for e in (16, 32, 64)}
    grow("experts", {str(e): alignment(t, 256) for e, t in layers.items()}, options.rounds)
    del layers, small
    tokens = build_tokens(options.experts, 8, options.width, options.inner, device=options.device)
    print(f"  {options.experts} experts, D = {options.width}, F = {options.inner}, "
          f"{options.tokens} tokens")  # fmt: skip
    seconds, worked, extra = watch(alignment(tokens, options.tokens))
    print(f"  alignment of all pairs: {seconds:.1f} s ({worked:.1f} s of processor time), "
          f"{extra:.2f} GiB beyond the weights", flush=True)  # fmt: skip
    draws = make_draws(np.arange(GROUPS), 0)
    settings = ExpertSettings(jacobian_tokens=options.tokens)

    def whole() -> None:
        measure_layer(tokens, draws, settings, 10)

    seconds, worked, extra = watch(whole)
    print(f"  the layer whole ({KEPT:,} tokens in its subspaces): {seconds:.1f} s "
          f"({worked:.1f} s of processor time), {extra:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
