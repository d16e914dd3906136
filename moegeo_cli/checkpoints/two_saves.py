"""Refuse a folder that holds two different saves of its weights: one file and shards.

`opening` calls it before it opens either. Two saves with equal values are accepted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moegeo_cli.checkpoints.indexes import read_index, read_json
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import MoegeoError, UnsupportedLayoutError

_PAIRS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
COMPARED_BYTES = 4 * 2**20  # larger tensors are compared by COMPARED_ROWS evenly spaced rows
COMPARED_ROWS = 16


def refuse_two_saves(folder: Path) -> None:
    """Raise if a folder holds its weights in one file and in shards with other values.

    transformers reads the single file. An index without its shards is ignored.

    Raises:
        UnsupportedLayoutError: the two saves differ, and no file says which one is stale.
    """
    for whole, index in _PAIRS:
        if not (is_there(folder / whole) and is_there(folder / index)):
            continue
        document = read_json(folder / index)
        named = document.get("weight_map") if isinstance(document, dict) else None
        shards = sorted({str(v) for v in named.values()}) if isinstance(named, dict) else []
        there = [s for s in shards if s != whole and "/" not in s and is_there(folder / s)]
        if there and not _are_same(folder, whole, index):
            raise UnsupportedLayoutError(
                f"{folder.name} holds its weights twice: {whole}, which transformers reads, "
                f"and the shards of {index}",
                found=f"{whole} and {', '.join(there[:3])} hold different values",
                hint="move away the stale files, which an earlier save or a merge left",
            )


def _are_same(folder: Path, whole: str, index: str) -> bool:
    """Whether both saves hold the same tensors; large ones are compared by some rows."""
    try:
        one = WeightIndex(folder, "whole", {folder / whole: None})
        other = WeightIndex(folder, "shards", read_index(folder / index))
        return one.names() == other.names() and all(
            (one.shape(name), one.dtype(name)) == (other.shape(name), other.dtype(name))
            and all(
                one.stored_bytes(name, rows) == other.stored_bytes(name, rows)
                for rows in _compared(one, name)
            )
            for name in one.names()
        )
    except MoegeoError:
        return False


def _compared(index: WeightIndex, name: str) -> Iterator[tuple[int, int] | None]:
    """The ranges of rows of a tensor that are compared; None for the whole tensor."""
    info = index.info(name)
    if info.end - info.start <= COMPARED_BYTES or not info.shape:
        yield None
        return
    count = info.shape[0]
    for place in sorted({count * step // COMPARED_ROWS for step in range(COMPARED_ROWS)}):
        yield place, place + 1
