"""Captured router inputs in memory-mapped files: rows are read when a batch needs them.

Legend: T rows, D router input width, E experts, K experts selected per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moegeo_cli.probes import Probe, Sample

HINT = "write it with moegeo.capture_routers; see docs/how-to/own-models.md"


@dataclass(slots=True)
class Column:
    """All rows of one kind ("inputs", say), in blocks of one or several files.

    Attributes:
        width: number of columns.
        blocks: arrays (rows, width), memory-mapped.
        starts: number of the first row of each block.
        rows: number of rows in all blocks.
        dtype: dtype of the first block, by its NumPy name or "bfloat16".
    """

    width: int
    blocks: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rows: int = 0
    dtype: str = ""

    def add(self, block: np.ndarray) -> None:
        """Append a block; uint16 means bfloat16."""
        if not self.blocks:
            self.dtype = {"uint16": "bfloat16"}.get(block.dtype.name, block.dtype.name)
        self.blocks.append(block)
        self.starts.append(self.rows)
        self.rows += len(block)

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Read rows by number: (N, width) in float32, or in int64 if integers were saved."""
        whole = self.blocks[0].dtype.kind == "i"
        found = np.empty((len(rows_N), self.width), dtype=np.int64 if whole else np.float32)
        place_N = np.searchsorted(self.starts, rows_N, side="right") - 1
        for place in np.unique(place_N):
            mine = place_N == place
            values = np.asarray(self.blocks[place][rows_N[mine] - self.starts[place]])
            if values.dtype == np.uint16:
                values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
            found[mine] = values
        return found


@dataclass(slots=True)
class CapturedRouter:
    """The columns of one router by kind; "inputs" is always present."""

    path: str
    layer: int | None
    columns: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captures:
    """A capture.

    Attributes:
        name: name of the file or folder.
        routers: module path -> the router's columns.
        lengths: number of rows of each sequence, in order.
        domains: domain of each sequence; None where not known.
        sha256: hash of the files.
        step: training step of the captured model; None where not known.
        fingerprint: fingerprint of its checkpoint; None where not known.
        notes: remarks that reports must show.
    """

    name: str
    routers: Mapping[str, CapturedRouter]
    lengths: tuple[int, ...]
    domains: tuple[str | None, ...]
    sha256: str
    step: int | None = None
    fingerprint: str | None = None
    notes: tuple[str, ...] = ()

    def probe(self) -> Probe:
        """The captured sequences as a probe, whose samples are row numbers."""
        starts = np.cumsum([0, *self.lengths])
        samples = tuple(
            Sample({"rows": np.arange(a, b)}, int(b - a), None, domain)
            for a, b, domain in zip(starts[:-1], starts[1:], self.domains, strict=True)
        )
        return Probe(self.name, samples, self.sha256, "captured")


def map_file(path: Path) -> np.ndarray:
    """Memory-map a file as bytes. Call it once a file, since every mapping keeps the file open."""
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
