"""Saved tensors read when they are asked for, into memory of their own.

A mapped file would do as well, but for its pages: they count as the process's memory, and
what a stream holds must be known.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from moegeo_cli.checkpoints.headers import open_regular
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

ALIGNMENT = 64  # of a cache line, and of what torch allocates
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


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
            UnsupportedLayoutError: a quantised dtype.
        """
        info = self.index.info(self.name)
        if info.dtype not in DTYPES:
            raise UnsupportedLayoutError(
                f"{self.name} has dtype {info.dtype}, which is not streamed",
                hint="give the unquantised checkpoint",
            )
        start, stop = self.rows or (0, info.shape[0] if info.shape else 1)
        shape = (stop - start, *info.shape[1:]) if info.shape else ()
        path = self.index.file_of(self.name)
        if self.index.header(path) is None:  # pickled: torch has mapped the file
            return self.index.mapped(self.name)[start:stop].clone()
        row_bytes = (info.end - info.start) // max(info.shape[0] if info.shape else 1, 1)
        # A product rounds by where its operands lie: the same place as in a mapped file.
        offset, size = info.start % ALIGNMENT, (stop - start) * row_bytes
        space = torch.empty(size + 2 * ALIGNMENT, dtype=torch.uint8)
        offset += -space.data_ptr() % ALIGNMENT
        raw = memoryview(space.numpy().data)[offset : offset + size]
        with open_regular(path) as (file, _):
            file.seek(info.start + start * row_bytes)
            if file.readinto(raw) != len(raw):  # type: ignore[attr-defined]
                raise IncompleteCheckpointError(
                    f"{path.name} ends before the tensor {self.name}",
                    hint="the file changed while it was read: run the command again",
                )
        return space[offset : offset + size].view(DTYPES[info.dtype]).reshape(shape)


def announce(index: WeightIndex, names: Iterable[str]) -> None:
    """Tell the system that these tensors are read next; it fetches them meanwhile.

    Where the system takes no such advice nothing happens.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    ranges: dict[Path, list[tuple[int, int]]] = {}
    for name in names:
        path, info = index.file_of(name), index.info(name)
        if index.header(path) is not None:
            ranges.setdefault(path, []).append((info.start, info.end - info.start))
    for path, parts in ranges.items():
        with open_regular(path) as (file, _):
            for start, length in parts:
                os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)
