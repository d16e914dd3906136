"""Measure the cost of `moegeo routing` after the replay: `python -m benchmarks.routing`.

One router with random inputs, rows and tokens: what is timed does not depend on what they say.
Memory is the peak of the resident set beyond what it was with the tokens there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.experts import grow, watch
from moegeo_cli.commands.routing.layers import Domains, measure_router
from moegeo_cli.commands.routing.models import Side, compare_pair
from moegeo_cli.commands.routing.settings import KEPT_TOKENS, RoutingSettings
from moegeo_cli.commands.routing.tokens import RoutedTokens
from moegeo_cli.geometry.mantel import sample_rows_evenly
from moegeo_cli.geometry.resample import group_sequences, make_draws
from moegeo_cli.geometry.shared_direction import centre_rows, row_space
from moegeo_cli.geometry.usage import Usage

LENGTH, VOCABULARY = 256, 4096


def build_tokens(tokens: int, experts: int, top_k: int, width: int) -> RoutedTokens:
    """A softmax router that random inputs meet; every sequence has as many tokens."""
    generator = np.random.default_rng(0)
    kept_N = np.sort(generator.choice(tokens, min(KEPT_TOKENS, tokens), replace=False))
    logits_TE = generator.normal(size=(tokens, experts)).astype(np.float32)
    sequence_T = np.arange(tokens) // LENGTH
    weight_ED = centre_rows(generator.normal(size=(experts, width)))
    selected_TK = np.argpartition(-logits_TE, top_k, axis=1)[:, :top_k].astype(np.int64)
    return RoutedTokens(
        layer=0,
        router="gate",
        experts=experts,
        top_k=top_k,
        scoring="softmax",
        usage=Usage(selected_TK, sequence_T, group_sequences(tokens // LENGTH, 0), experts),
        token_T=generator.integers(0, VOCABULARY, tokens),
        position_T=np.arange(tokens) % LENGTH,
        logits_TE=logits_TE,
        kept_N=kept_N,
        x_ND=generator.normal(size=(len(kept_N), width)).astype(np.float32),
        weight_ED=weight_ED,
        basis_DR=row_space(weight_ED, centred=True),
    )


def layer(tokens: RoutedTokens, settings: RoutingSettings) -> Callable[[], None]:
    """One router measured whole, as the command does it."""
    sequences = len(tokens.usage.groups_S)
    domains = Domains.of(["abcd"[s % 4] for s in range(sequences)])
    draws = make_draws(tokens.usage.groups_S, 0)
    prompt_T = tokens.position_T < LENGTH // 2

    def run() -> None:
        measure_router(tokens, prompt_T, {}, domains, draws, settings)

    return run


def beside(tokens: RoutedTokens) -> Callable[[], None]:
    """One router held against another model's."""
    rows_SM = sample_rows_evenly(tokens.usage.sequence_T, 0)
    side = Side(0, "gate", tokens.usage, rows_SM, tokens.roots(rows_SM.ravel()), "")
    draws = make_draws(tokens.usage.groups_S, 0)

    def run() -> None:
        compare_pair(side, side, None, None, draws, 0)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24576)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; D = {options.width}, sequences of {LENGTH} tokens")
    usual = RoutingSettings()
    for name, sizes in {
        "tokens": [(n, 64, 8, 512) for n in (12288, 24576, 49152)],
        "experts": [(24576, e, 8, 512) for e in (64, 128, 256)],
        "width": [(24576, 64, 8, d) for d in (512, 1024, 2048)],
    }.items():
        place = {"tokens": 0, "experts": 1, "width": 3}[name]
        grow(name, {f"{s[place]:,}": layer(build_tokens(*s), usual) for s in sizes},
             options.rounds)  # fmt: skip
    small = build_tokens(24576, 64, 8, 512)
    many = {n: RoutingSettings(pairs=n) for n in (8192, 16384, 32768)}
    grow("pairs", {f"{n:,}": layer(small, s) for n, s in many.items()}, options.rounds)
    tokens = build_tokens(options.tokens, options.experts, options.top_k, options.width)
    print(f"  {options.tokens:,} tokens, {options.experts} experts, {options.top_k} chosen, "
          f"D = {options.width}")  # fmt: skip
    for name, run in (
        ("the router whole", layer(tokens, usual)), ("beside another model", beside(tokens))
    ):  # fmt: skip
        seconds, worked, extra = watch(run)
        print(f"  {name}: {seconds:.1f} s ({worked:.1f} s of processor time), {extra:.2f} GiB",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
