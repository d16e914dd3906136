"""Runs the command among several processes (ranks) that torchrun started.

torchrun sets environment variables in each process. Rank 0 runs the command as a single process
would. The other ranks compute what rank 0 asks for, print nothing, and exit with its exit code.
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
ORDERLY_EXITS = (0, 1, 2, 3)  # exit codes after which rank 0 can still tell the others to leave
# Options by which other tools split a model, and the kind of parallelism that each means.
FOREIGN_OPTIONS = {
    **dict.fromkeys(("--tp", "--tp-size", "--tp-plan", "--tensor-parallel"), "tensor"),
    **dict.fromkeys(("--ep", "--ep-size", "--expert-parallel"), "expert"),
    **dict.fromkeys(("--pp", "--pp-size", "--pipeline-parallel"), "pipeline"),
}


def refuse_parallelism(kind: str) -> UsageError:
    """The error for an option of another tool that splits a model.

    Args:
        kind: "tensor", "expert" or "pipeline".
    """
    if kind == "pipeline":
        return UsageError(
            "moegeo has no pipeline parallelism",
            hint="torchrun with --parallel expert or tensor splits the model over processes; "
            "--device-map splits it over the devices of one process",
        )
    return UsageError(
        f"the option for {kind} parallelism is --parallel {kind}",
        hint=f"torchrun --nproc-per-node N -m moegeo_cli analyze RUN --parallel {kind}",
    )


def run_among_ranks(
    work: Callable[[Ranks | None], int], report: Callable[[MoegeoError], int]
) -> int:
    """Run the command alone or as rank 0, or serve rank 0.

    Args:
        work: runs the command and returns its exit code.
        report: prints an error and returns its exit code.

    Returns:
        The exit code of this process.
    """
    try:
        place = read_torchrun_variables()
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
        if code in ORDERLY_EXITS:
            ranks.dismiss_others(code)
        else:
            ranks.disconnect()
    if not ranks.share_probe:
        # A split model creates process groups whose threads torch does not stop. They can abort
        # the interpreter during a normal exit, so the process exits at once.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def read_torchrun_variables() -> tuple[int, int, int] | None:
    """Read torchrun's environment variables.

    Returns:
        Rank, number of ranks and local rank; None for a single process.

    Raises:
        UsageError: some of the variables are missing or not numbers.
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

    real_stderr = sys.stderr
    if not os.environ.get("MOEGEO_DEBUG"):  # only rank 0 prints
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the end
    try:
        return serve(ranks)
    except ResourceError:  # rank 0 has ended
        ranks.close()
        return EXIT_LOST
    except Exception:  # print it here: rank 0 only learns that this rank ended
        for line in traceback.format_exc().splitlines():
            print(f"rank {ranks.rank}: {line}", file=real_stderr, flush=True)
        ranks.disconnect()
        return EXIT_BUG
