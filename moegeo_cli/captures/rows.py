"""Captured router inputs: rows that stay in their files until they are needed.

Legend: T rows, D router input width, E experts, K experts chosen per token.
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
    """Rows of one kind, in blocks of several files. `dtype` is that of the first block."""

    width: int
    blocks: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    rows: int = 0
    dtype: str = ""

    def add(self, block: np.ndarray) -> None:
        """Append rows. Two-byte unsigned integers are bfloat16."""
        if not self.blocks:
            self.dtype = {"uint16": "bfloat16"}.get(block.dtype.name, block.dtype.name)
        self.blocks.append(block)
        self.starts.append(self.rows)
        self.rows += len(block)

    def take(self, rows_N: np.ndarray) -> np.ndarray:
        """Rows by number, (N, width): float32, or int64 where whole numbers were saved."""
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
    """One router's columns by kind; "inputs" is always there."""

    path: str
    layer: int | None
    columns: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Captures:
    """What was captured: routers by path, the sequences that rows belong to, and from where.

    `step` and `fingerprint` tell the checkpoint, None where unknown. `notes` must be reported.
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
        """The captured sequences as a probe: the input of a router is row numbers."""
        starts = np.cumsum([0, *self.lengths])
        samples = tuple(
            Sample({"rows": np.arange(a, b)}, int(b - a), None, domain)
            for a, b, domain in zip(starts[:-1], starts[1:], self.domains, strict=True)
        )
        return Probe(self.name, samples, self.sha256, "captured")


def map_file(path: Path) -> np.ndarray:
    """A file's bytes, memory-mapped.

    Each file is mapped once, since every mapping keeps it open.
    """
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
