"""moegeo: routing geometry and Fisher specialization of Mixture-of-Experts checkpoints.

The public names are loaded on first use, so that importing the package (and so
`moegeo --help`) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moegeo_cli.captures.recorder import capture_routers
    from moegeo_cli.commands.analyze.api import analyze
    from moegeo_cli.commands.check.api import check
    from moegeo_cli.commands.compare.api import compare
    from moegeo_cli.commands.demo.api import demo
    from moegeo_cli.commands.experts.api import experts
    from moegeo_cli.commands.explain.api import explain
    from moegeo_cli.commands.inspect.api import inspect
    from moegeo_cli.commands.invariance.api import invariance
    from moegeo_cli.commands.report.api import report
    from moegeo_cli.commands.routing.api import routing
    from moegeo_cli.commands.watch.api import watch
    from moegeo_cli.session import Session

__all__ = [
    "Session", "__version__", "analyze", "capture_routers", "check", "compare", "demo",
    "experts", "explain", "inspect", "invariance", "report", "routing", "watch",
]  # fmt: skip
# Public name -> the module that defines it.
PUBLIC = {
    "Session": "session",
    "analyze": "commands.analyze.api",
    "capture_routers": "captures.recorder",
    "check": "commands.check.api",
    "compare": "commands.compare.api",
    "demo": "commands.demo.api",
    "experts": "commands.experts.api",
    "explain": "commands.explain.api",
    "inspect": "commands.inspect.api",
    "invariance": "commands.invariance.api",
    "report": "commands.report.api",
    "routing": "commands.routing.api",
    "watch": "commands.watch.api",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded on first use."""
    if name in PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)
    if not name.startswith("_"):
        from moegeo_cli.registry import commands  # a command that an extension added

        if name in commands():
            return commands()[name].function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
