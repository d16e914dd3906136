"""Check that pairs of ranks exit with code 0 under load, after measuring a small sample.

    python -m benchmarks.rank_ends --pairs 200 --load 4 [--warm]

Pairs are forked from one process that has imported torch and transformers. Everything else (the
group, the model's own modules) happens in the pair, and each rank ends as a process does. With
`--warm` the first process has measured the sample once, so that a pair takes a second or two; then
modules that are imported with a model are there before the group.
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import transformers  # noqa: F401 - before the fork

from moegeo_cli import analyze

SAMPLE = Path(__file__).parents[1] / "sample_checkpoints" / "unbalanced-mixtral"


def run_rank(rank: int, port: int) -> None:
    from moegeo_cli.measuring.serving import serve
    from moegeo_cli.replay.ranks import Ranks

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks = Ranks.connect(rank, 2, rank)
    if rank > 0:
        sys.exit(serve(ranks))
    analyze(SAMPLE, max_tokens=64, latest=True, baseline="none", cache=False, device="cpu",
                ranks=ranks)  # fmt: skip
    ranks.dismiss_others(0)
    sys.exit(0)


def fork(work: object, *arguments: object) -> int:
    """A child that does the work and ends as a process does; its id."""
    child = os.fork()
    if child == 0:
        work(*arguments)  # type: ignore[operator]
    return child


def burn() -> None:
    while True:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--load", type=int, default=4, help="busy processes beside them")
    parser.add_argument("--warm", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.warm:
        import moegeo_cli.replay.ranks  # noqa: F401

        analyze(SAMPLE, max_tokens=64, latest=True, baseline="none", cache=False, device="cpu")
    gc.freeze()  # a rank's end need not look through what the first process imported
    parent = os.getpid()
    busy = [fork(burn) for _ in range(options.load)]
    codes: Counter[int] = Counter()
    start = time.monotonic()
    try:
        for place in range(options.pairs):
            with socket.socket() as server:
                server.bind(("127.0.0.1", 0))
                port = server.getsockname()[1]
            pair = [fork(run_rank, rank, port) for rank in (0, 1)]
            codes.update(os.waitstatus_to_exitcode(os.waitpid(p, 0)[1]) for p in pair)
            print(f"{place + 1} pairs, {time.monotonic() - start:.0f} s: exit codes {dict(codes)}",
                  flush=True)  # fmt: skip
    finally:
        if os.getpid() == parent:  # a rank leaves by here as well
            for process in busy:
                os.kill(process, 9)
                os.waitpid(process, 0)


if __name__ == "__main__":
    main()
