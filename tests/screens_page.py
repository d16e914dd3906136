"""Write the screens of docs/reference/reports.md: `python -m tests.screens_page`.

Each block is what the command prints on a terminal of 80 columns, by running it on the sample runs
without a store. `tests/test_documentation.py` holds the page to the pictures of the same screens.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "reports.md"
# What stands in the page after "$ moegeo".
BLOCK = re.compile(
    r"(```console\n\$ moegeo ([^\n]*sample_checkpoints[^\n]*)\n)(.*?)(```\n)", re.DOTALL
)
STORED = ("analyze", "check", "compare", "experts", "routing")


def run(command: str) -> str:
    """What a command prints.

    Args:
        command: with its arguments, without "moegeo".
    """
    words = shlex.split(command)
    more = ["--no-cache"] if words[0] in STORED else []
    outcome = subprocess.run(
        [sys.executable, "-m", "moegeo_cli", *words, *more], cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in outcome.stdout.splitlines()) + "\n"


def main() -> None:
    """Run every command that the page shows."""
    text = PAGE.read_text("utf-8")
    text = BLOCK.sub(lambda found: f"{found[1]}{run(found[2])}{found[4]}", text)
    PAGE.write_text(text, "utf-8")
    print(f"wrote the screens of {PAGE}")


if __name__ == "__main__":
    main()
