"""moegeo: routing geometry and Fisher specialization of Mixture-of-Experts checkpoints.

The public names are loaded on first use, so that importing the package (and so
`moegeo --help`) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moegeo_cli.api_analyze import analyze
    from moegeo_cli.api_check import check
    from moegeo_cli.api_compare import compare
    from moegeo_cli.api_experts import experts
    from moegeo_cli.api_inspect import inspect
    from moegeo_cli.api_invariance import invariance
    from moegeo_cli.api_routing import routing
    from moegeo_cli.measurement.capturing import capture_routers
    from moegeo_cli.session import Session

__all__ = [
    "Session", "__version__", "analyze", "capture_routers", "check", "compare", "experts",
    "inspect", "invariance", "routing",
]  # fmt: skip
# Public name -> the module that it lies in.
PUBLIC = {
    "Session": "session",
    "analyze": "api_analyze",
    "capture_routers": "measurement.capturing",
    "check": "api_check",
    "compare": "api_compare",
    "experts": "api_experts",
    "inspect": "api_inspect",
    "invariance": "api_invariance",
    "routing": "api_routing",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded on first use."""
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
