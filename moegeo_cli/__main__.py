"""`python -m moegeo_cli` and the `moegeo` command."""

from __future__ import annotations

import os
import signal
import sys

from moegeo_cli.cli.app import EXIT_INTERRUPTED, run
from moegeo_cli.process import mark_own_process


def main() -> None:
    """Run the command line and leave with its exit code."""
    # oneDNN caches a kernel per input shape. Experts get a different number of tokens in each
    # batch, so an unlimited cache grows to gigabytes.
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
    mark_own_process()
    code = run()
    if code == EXIT_INTERRUPTED:  # a second Ctrl-C during shutdown would print a traceback
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(code)


if __name__ == "__main__":
    main()
