"""`import moegeo`: the public names of moegeo_cli, under the name of the distribution.

The build copies this folder to `moegeo`, beside `moegeo_cli`. Names are loaded on first use. None
stands here, so that the copy of an editable install knows the names that come later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import moegeo_cli
from moegeo_cli import PUBLIC
from moegeo_cli import __all__ as __all__
from moegeo_cli import __version__ as __version__
from moegeo_cli.registry import commands

if TYPE_CHECKING:
    from moegeo_cli import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A public name, loaded on first use."""
    if name in PUBLIC or name in commands():
        return getattr(moegeo_cli, name)
    raise AttributeError(f"module 'moegeo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
