"""`CapturedInputs`: the form of a run whose routers are measured without a model (--captures)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moegeo_cli.captures.files import read_captures
from moegeo_cli.checkpoints.architecture import Architecture
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.routers import RouterTensors
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.models.given import Models
from moegeo_cli.probes import Probe


class CapturedInputs(Models):
    """Routers without a model, with captured inputs; see `Models`.

    Args:
        path: the capture.
        base: finds and describes the routers: `Models` by config.json, or `OwnFactory` by options.
    """

    routers_only = True

    def __init__(self, path: Path, base: Models) -> None:
        self.base, self.captures, self.own = base, read_captures(path), base.own
        self.identity = {"captures": self.captures.sha256, "base": base.identity}

    def open(self, path: Path | str) -> RunFolder:
        """See `Models`."""
        return self.base.open(path)

    def describe(self, checkpoint: Checkpoint) -> Architecture:
        """See `Models`."""
        return self.base.describe(checkpoint)

    def check(self, checkpoint: Checkpoint, architecture: Architecture) -> None:
        """See `Models`."""
        self.base.check(checkpoint, architecture)

    def probe(self) -> Probe | None:
        """See `Models`: the captured sequences."""
        return self.captures.probe()

    def source(self, device: Any, dtype: Any, architecture: Architecture) -> Any:
        """See `Models`."""
        from moegeo_cli.models.captured import CapturedModels

        def find(index: WeightIndex) -> Sequence[RouterTensors]:
            return self.base.routers(index, architecture)

        return CapturedModels(self.captures, architecture, find, device)
