"""How a config's module tree is filled, for who reads files alone; torch is loaded when asked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.weights import WeightIndex


def fill_tree(folder: Path, index: WeightIndex) -> Mapping[str, Any]:
    """See `replay.adapting.trace_config`: adapters whose names are not those of the files ask."""
    from moegeo_cli.models.adapting import trace_config

    return trace_config(folder, index)
