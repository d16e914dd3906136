"""Saved tensors that are read on demand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from moegeo_cli.checkpoints.headers import open_regular
from moegeo_cli.checkpoints.weights import WeightIndex


class StoredTensor:
    """One tensor of a checkpoint, or some of its rows; `[...]` reads it.

    Args:
        index: the checkpoint's tensors.
        name: the tensor's.
        rows: (start, stop) along the first dimension; None for all.
    """

    def __init__(self, index: WeightIndex, name: str, rows: tuple[int, int] | None = None) -> None:
        self.index, self.name, self.rows = index, name, rows

    def __getitem__(self, key: Any) -> torch.Tensor:
        """The values.

        Raises:
            IncompleteCheckpointError: the file ends before them.
            UnsupportedLayoutError: a dtype that torch does not have.
        """
        values: torch.Tensor = self.index.tensor(self.name, self.rows)[key]
        return values


def announce(index: WeightIndex, names: Iterable[str]) -> None:
    """Tell the operating system that these tensors are read next, so that it fetches them.

    Where the system takes no such advice nothing happens.
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
