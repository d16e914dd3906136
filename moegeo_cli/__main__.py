"""`python -m moegeo_cli` and the `moegeo` command."""

from __future__ import annotations

import os
import signal
import sys

from moegeo_cli.cli.app import EXIT_INTERRUPTED, run
from moegeo_cli.process import take_process


def main() -> None:
    """Run the command line and leave with its exit code."""
    # A kernel kept for every number of tokens that an expert ever got comes to gigabytes.
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
    take_process()
    code = run()
    if code == EXIT_INTERRUPTED:  # a second Ctrl-C would leave a traceback of what is torn down
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
