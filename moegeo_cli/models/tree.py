"""How a config's module tree is filled, for code that reads files only.

torch is imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.weights import WeightIndex


def fill_tree(checkpoint: Checkpoint, index: WeightIndex) -> Mapping[str, Any]:
    """See `adapting.trace_config`: adapters whose names are not those of the files ask."""
    from moegeo_cli.models.adapting import trace_config

    return trace_config(checkpoint, index)
