"""Makes a user's own model importable when the command line names it."""

from __future__ import annotations

import sys
from pathlib import Path


def make_importable(name: str | None) -> str | None:
    """Return the name unchanged, after making modules in the current folder importable.

    The folder is added to the end of sys.path, so its files cannot replace installed packages.
    """
    here = str(Path.cwd())
    if name is not None and here not in sys.path:
        sys.path.append(here)
    return name
