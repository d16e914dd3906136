"""Whether this process is one of several that share a probe, as torchrun starts them.

torchrun says so in the environment. Rank 0 runs the command as a single process does, with the
others at its call; they print nothing and leave with its exit code.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moegeo_cli.errors import MoegeoError, ResourceError, UsageError

if TYPE_CHECKING:
    from moegeo_cli.replay.ranks import Ranks

NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
EXIT_LOST, EXIT_BUG = 2, 70
TOGETHER = (0, 1, 2, 3)  # exit codes with which rank 0 stands where the others can hear it
# Options that other tools have for a model that is split within its layers.
UNOFFERED = {
    **dict.fromkeys(("--tp", "--tp-size", "--tp-plan", "--tensor-parallel"), "tensor"),
    **dict.fromkeys(("--ep", "--ep-size", "--expert-parallel"), "expert"),
    **dict.fromkeys(("--pp", "--pp-size", "--pipeline-parallel"), "pipeline"),
}


def refuse_parallelism(kind: str) -> UsageError:
    """What is said to whoever asks for it."""
    if kind == "pipeline":
        return UsageError(
            "pipeline parallelism is not offered",
            hint="torchrun with --parallel expert or tensor splits the model; --device-map spreads "
            "it over the devices of one process",
        )
    return UsageError(
        f"{kind} parallelism has another option here",
        hint=f"torchrun --nproc-per-node N -m moegeo_cli analyze RUN --parallel {kind}",
    )


def run_among_ranks(
    work: Callable[[Ranks | None], int], report: Callable[[MoegeoError], int]
) -> int:
    """Run the command alone, as rank 0, or serve rank 0; the exit code.

    Args:
        work: runs the command and gives its exit code.
        report: says an error and gives its exit code.
    """
    try:
        place = find_place()
        if place is None:
            return work(None)
        from moegeo_cli.replay.ranks import Ranks

        ranks = Ranks.connect(*place)
    except MoegeoError as error:
        return report(error)
    ranks.whole_process = True
    if ranks.rank > 0:
        code = _serve(ranks)
    else:
        code = work(ranks)
        if code in TOGETHER:
            ranks.leave(code)
        else:
            ranks.abandon()
    if not ranks.share_probe:
        # torch keeps threads of the groups that a split model makes beyond their end, and threads
        # that are alive can abort an interpreter that ends in order.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def find_place() -> tuple[int, int, int] | None:
    """Rank, number of ranks and local rank; None for a single process.

    Raises:
        UsageError: the environment says half of it.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return None
    missing = [name for name in NAMES if name not in os.environ]
    texts = (os.environ.get("RANK", ""), world, os.environ.get("LOCAL_RANK", "0"))
    if missing or not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(world):
        raise UsageError(
            "the environment says that there are several ranks, but not which one this is",
            found=", ".join(
                f"{name} is {os.environ[name]!r}" if name in os.environ else f"no {name}"
                for name in NAMES
            ),
            hint="torchrun --nproc-per-node 2 -m moegeo_cli analyze RUN, or unset WORLD_SIZE",
        )
    return int(texts[0]), int(texts[1]), int(texts[2])


def _serve(ranks: Ranks) -> int:
    from moegeo_cli.measuring.serving import serve

    spoken = sys.stderr
    if not os.environ.get("MOEGEO_DEBUG"):  # rank 0 alone speaks
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    try:
        return serve(ranks)
    except ResourceError:  # rank 0 is gone
        ranks.close()
        return EXIT_LOST
    except Exception:  # of this rank alone: rank 0 hears that it ended, not why
        for line in traceback.format_exc().splitlines():
            print(f"rank {ranks.rank}: {line}", file=spoken, flush=True)
        ranks.abandon()
        return EXIT_BUG
