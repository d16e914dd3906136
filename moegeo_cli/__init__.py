"""moegeo: routing geometry and Fisher specialization of Mixture-of-Experts checkpoints.

The public names are loaded on first use, so that importing the package (and so
`moegeo --help`) does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moegeo_cli.api import analyze, compare, inspect, invariance
    from moegeo_cli.api_check import check
    from moegeo_cli.api_experts import experts
    from moegeo_cli.api_routing import routing
    from moegeo_cli.measurement.capturing import capture_routers

__all__ = [
    "__version__", "analyze", "capture_routers", "check", "compare", "experts", "inspect",
    "invariance", "routing",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load a public function on first use."""
    if name in {"analyze", "compare", "inspect", "invariance"}:
        from moegeo_cli import api

        return getattr(api, name)
    if name == "capture_routers":
        from moegeo_cli.measurement import capturing

        return capturing.capture_routers
    if name == "check":
        from moegeo_cli.api_check import check

        return check
    if name == "experts":
        from moegeo_cli.api_experts import experts

        return experts
    if name == "routing":
        from moegeo_cli.api_routing import routing

        return routing
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
