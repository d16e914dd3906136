"""`python -m moegeo_cli` and the `moegeo` command."""

from __future__ import annotations

import sys

from moegeo_cli.cli.app import run


def main() -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(run())


if __name__ == "__main__":
    main()
