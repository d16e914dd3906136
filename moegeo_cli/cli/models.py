"""A user's own model, named on the command line."""

from __future__ import annotations

import sys
from pathlib import Path


def own_model(name: str | None) -> str | None:
    """The same name, its module importable from the current folder.

    The folder comes last, so that no file in it can stand in for a package that is installed.
    """
    here = str(Path.cwd())
    if name is not None and here not in sys.path:
        sys.path.append(here)
    return name
