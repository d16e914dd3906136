"""Trace a module tree without importing torch before it is needed, for commands that read files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.weights import WeightIndex


def trace_tree(checkpoint: Checkpoint, index: WeightIndex) -> Mapping[str, Any]:
    """See `adapting.trace_config`. Merging needs it if an adapter's names are not the files'."""
    from moegeo_cli.models.adapting import trace_config

    return trace_config(checkpoint, index)
