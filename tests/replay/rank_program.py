"""What a user's own program does under torchrun: rank 0 analyses, the others serve it.

Arguments: a JSON file of [[keywords of analyze, file to write], ...].
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from moegeo_cli import analyze
from moegeo_cli.measuring.serving import serve
from moegeo_cli.replay.ranks import Ranks
from moegeo_cli.reports import render

CONNECTIONS = ("pt_gloo", "gloo_tcp", "pt_tcpstore")


def leave(code: int) -> None:
    """End; with an error where the connections' threads are still alive (Linux tells)."""
    tasks = Path("/proc/self/task").glob("*/comm")
    alive = [name for name in (task.read_text().strip() for task in tasks)
             if name.startswith(CONNECTIONS)]  # fmt: skip
    sys.exit(f"threads at the end: {alive}" if alive else code)


if __name__ == "__main__":
    ranks = Ranks.connect(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 0)
    if ranks.rank > 0:
        leave(serve(ranks))
    for keywords, place in json.loads(Path(sys.argv[1]).read_text()):
        record = analyze(**keywords, cache=False, ranks=ranks)
        Path(place).write_text(render(record, "json"))
    ranks.dismiss_others(0)
    leave(0)
