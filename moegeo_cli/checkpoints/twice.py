"""Weights that a folder holds twice, whole and in shards: the same, or one of them stale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from moegeo_cli.checkpoints.headers import is_there
from moegeo_cli.checkpoints.indexes import read_index, read_json
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import MoegeoError, UnsupportedLayoutError

_PAIRS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
COMPARED_BYTES = 4 * 2**20  # of a tensor; a larger one is compared by rows that are evenly spread
COMPARED_ROWS = 16


def refuse_two(folder: Path) -> None:
    """Raise where a folder holds its weights whole and in shards, and they are not the same.

    transformers reads the whole ones. An index without shards is a leftover that nobody reads.

    Raises:
        UnsupportedLayoutError: two saves, and no file says which one is stale.
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
                found=f"{whole}, {', '.join(there[:3])}, and not the same values in both",
                hint="move the stale ones away: of an earlier save, or of a merge",
            )


def _are_same(folder: Path, whole: str, index: str) -> bool:
    """Whether both saves hold the same tensors, as far as they are compared."""
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
    """The rows of a tensor that are compared; None for all of them."""
    info = index.info(name)
    if info.end - info.start <= COMPARED_BYTES or not info.shape:
        yield None
        return
    count = info.shape[0]
    for place in sorted({count * step // COMPARED_ROWS for step in range(COMPARED_ROWS)}):
        yield place, place + 1
