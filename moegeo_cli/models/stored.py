"""Saved tensors that are read on demand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from moegeo_cli.checkpoints.safe_files import open_regular
from moegeo_cli.checkpoints.weights import WeightIndex


class StoredTensor:
    """One tensor of a checkpoint, or some of its rows; `[...]` reads it.

    Args:
        index: the checkpoint's tensors.
        name: name of the tensor.
        rows: (start, stop) along the first dimension; None for all.
    """

    def __init__(self, index: WeightIndex, name: str, rows: tuple[int, int] | None = None) -> None:
        self.index, self.name, self.rows = index, name, rows

    def __getitem__(self, key: Any) -> torch.Tensor:
        """The values at `key`.

        Raises:
            IncompleteCheckpointError: the file is truncated.
            UnsupportedLayoutError: torch does not have the tensor's dtype.
        """
        values: torch.Tensor = self.index.tensor(self.name, self.rows)[key]
        return values


def prefetch(index: WeightIndex, names: Iterable[str]) -> None:
    """Ask the operating system to read tensors into the page cache. Without posix_fadvise: nothing.

    Args:
        index: the checkpoint's tensors.
        names: names of the tensors.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    ranges: dict[Path, list[tuple[int, int]]] = {}
    for name in names:
        for path, info in index.parts(name):
            if index.header(path) is not None:
                ranges.setdefault(path, []).append((info.start, info.end - info.start))
    for path, parts in ranges.items():
        with open_regular(path) as (file, _):
            for start, length in parts:
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
