"""Read `.metadata` of torch.distributed.checkpoint: saved tensors, their pieces, and the files.

`distributed` reads the tensors with it. torch writes `.metadata` last, by a rename, as a pickle of
its own classes. Loading a tampered pickle with torch would run its code. `unpickling` reads it
without torch and without running anything: the classes in `ALLOWED` become records, and everything
else is refused.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.headers import DTYPE_BITS
from moegeo_cli.checkpoints.indexes import check_shard_name
from moegeo_cli.checkpoints.metadata_names import ALLOWED, is_naturals
from moegeo_cli.checkpoints.safe_files import open_regular, read_exactly
from moegeo_cli.checkpoints.unpickling import Record, unpickle
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

# A model of a thousand tensors over 600 ranks needs about two thirds of this.
MAX_METADATA_BYTES = 256 * 2**20
# The dimensions along which one tensor may be cut; training cuts along one or two.
MAX_CUT_DIMENSIONS = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """A box within a tensor, stored as a torch.save archive in a file.

    Attributes:
        offsets: position of the box in the tensor.
        shape: shape of the box.
        file: name of the file.
        start: byte offset of the archive.
        length: its length in bytes.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor and its pieces, which fill it without gap or overlap; dtype by safetensors name."""

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class SavedState:
    """The content of a `.metadata`.

    Attributes:
        tensors: flat name -> tensor.
        objects: flat names of pickled values, which are never loaded.
        paths: flat name -> keys in the nested state dict; empty where torch did not flatten it.
        spans: file -> (start, length) in bytes of what it must hold, by start.
    """

    tensors: Mapping[str, SavedTensor]
    objects: tuple[str, ...]
    paths: Mapping[str, tuple[str | int, ...]]
    spans: Mapping[str, tuple[tuple[int, int], ...]]


def read_metadata(path: Path) -> SavedState:
    """Read and check a `.metadata`, without torch and without running anything.

    Raises:
        UnsafeFileError: the pickle would run code, or names a file outside its folder.
        IncompleteCheckpointError: it is truncated or damaged, or pieces do not fill a tensor.
        UnsupportedLayoutError: pieces are compressed or encrypted.
    """
    with open_regular(path) as (file, size):
        if size > MAX_METADATA_BYTES:
            raise damaged(path, f"{size} bytes, more than any that moegeo reads")
        raw = read_exactly(file, size, path)
    state = _fields(path, unpickle(raw, path, ALLOWED), "Metadata")
    described, stored = state.get("state_dict_metadata"), state.get("storage_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise damaged(path, "no list of tensors or of their places")
    places, spans = _places(path, stored)
    tensors: dict[str, SavedTensor] = {}
    objects = []
    for name, entry in described.items():
        if not isinstance(name, str):
            raise damaged(path, "a tensor whose name is no text")
        if isinstance(entry, Record) and entry.kind == "BytesStorageMetadata":
            objects.append(name)
        else:
            tensors[name] = _tensor(
                path, name, _fields(path, entry, "TensorStorageMetadata"), places
            )
    return SavedState(tensors, tuple(objects), _paths(path, state.get("planner_data")), spans)


def tiles(shape: tuple[int, ...], boxes: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> bool:
    """Whether boxes (offsets, shape) fill a box of `shape` without gap or overlap.

    Each box adds alternating +1 and -1 at its corners (the mixed derivative of its indicator
    function). The boxes fill the whole exactly if their sum equals that of the whole box. The cost
    is linear in the number of boxes, and only dimensions along which something is cut count.
    """
    if 0 in shape:
        return all(0 in sizes for _, sizes in boxes)
    cut = [
        axis
        for axis, extent in enumerate(shape)
        if any(offsets[axis] != 0 or sizes[axis] != extent for offsets, sizes in boxes)
    ]
    if len(cut) > MAX_CUT_DIMENSIONS:
        return False
    corners: Counter[tuple[int, ...]] = Counter()
    whole = ((0,) * len(shape), shape)
    for sign, (offsets, sizes) in [(-1, whole), *((1, box) for box in boxes if 0 not in box[1])]:
        for ends in itertools.product((0, 1), repeat=len(cut)):
            corner = tuple(
                offsets[axis] + end * sizes[axis] for axis, end in zip(cut, ends, strict=True)
            )
            corners[corner] += sign * (-1) ** sum(ends)
    return not any(corners.values())


def damaged(path: Path, found: str) -> IncompleteCheckpointError:
    """The error for a truncated or damaged `.metadata`."""
    return IncompleteCheckpointError(
        f"{path.name} is truncated or damaged",
        found=found[:500],
        hint="copy or save the checkpoint again; if it is still being written, wait",
        context={"path": str(path)},
    )


def _places(
    path: Path, stored: dict[Any, Any]
) -> tuple[dict[tuple[str, tuple[int, ...] | None], Piece], dict[str, tuple[tuple[int, int], ...]]]:
    """((name, offsets) -> piece, file -> spans that it must hold)."""
    places: dict[tuple[str, tuple[int, ...] | None], Piece] = {}
    spans: dict[str, list[tuple[int, int]]] = {}
    for index, info in stored.items():
        key, place = _fields(path, index, "MetadataIndex"), _fields(path, info, "_StorageInfo")
        name, offsets = key.get("fqn"), key.get("offset")
        file, span = place.get("relative_path"), (place.get("offset"), place.get("length"))
        if not isinstance(name, str) or not (offsets is None or is_naturals(offsets)):
            raise damaged(path, "a piece without a usable name or offset")
        if not isinstance(file, str) or not is_naturals(span):
            raise damaged(path, f"no usable place for {name!r}")
        start, length = span
        if place.get("transform_descriptors"):
            raise UnsupportedLayoutError(
                f"{path.parent.name} was saved compressed or encrypted, which moegeo does not read",
                found=f"{name} in {file}",
                hint="load it with its extension and save it without",
            )
        check_shard_name(path, file)
        places[name, offsets] = Piece(offsets or (), (), file, start, length)
        spans.setdefault(file, []).append((start, length))
    ordered = {file: tuple(sorted(found)) for file, found in sorted(spans.items())}
    for file, found in ordered.items():
        for (start, length), (following, _) in itertools.pairwise(found):
            if start + length > following:
                raise damaged(path, f"two pieces that overlap in {file} at byte {following}")
    return places, ordered


def _tensor(
    path: Path,
    name: str,
    state: dict[str, Any],
    places: Mapping[tuple[str, tuple[int, ...] | None], Piece],
) -> SavedTensor:
    """A tensor, with its pieces checked against its shape and against their sizes in bytes."""
    properties, shape, chunks = (state.get(key) for key in ("properties", "size", "chunks"))
    dtype = None
    if isinstance(properties, Record) and properties.kind == "TensorProperties":
        held = properties.state
        dtype = held[0] if isinstance(held, tuple) and held else None
    if (
        not isinstance(dtype, str)
        or dtype not in DTYPE_BITS
        or not is_naturals(shape)
        or not isinstance(chunks, list)
    ):
        raise damaged(path, f"tensor {name!r} without a usable dtype, shape or list of pieces")
    pieces = []
    for chunk in chunks:
        box = _fields(path, chunk, "ChunkStorageMetadata")
        offsets, sizes = box.get("offsets"), box.get("sizes")
        if not is_naturals(offsets) or not is_naturals(sizes):
            raise damaged(path, f"tensor {name!r} with a piece of no usable shape")
        if not len(offsets) == len(sizes) == len(shape):
            raise damaged(path, f"tensor {name!r} of shape {list(shape)}, a piece {list(sizes)}")
        place = places.get((name, offsets))
        if place is None:
            raise damaged(path, f"no place for the piece of {name!r} at {list(offsets)}")
        if math.prod(sizes) * DTYPE_BITS[dtype] > place.length * 8:
            raise damaged(path, f"{dtype} {list(sizes)} of {name!r} in {place.length} bytes")
        pieces.append(Piece(offsets, sizes, place.file, place.start, place.length))
    if not tiles(shape, [(piece.offsets, piece.shape) for piece in pieces]):
        covered = sum(math.prod(piece.shape) for piece in pieces)
        raise damaged(
            path,
            f"{len(pieces)} pieces of {name!r} with {covered} elements that do not make up its "
            f"shape {list(shape)}",
        )
    return SavedTensor(dtype, shape, tuple(sorted(pieces, key=lambda piece: piece.offsets)))


def _paths(path: Path, planner: Any) -> dict[str, tuple[str | int, ...]]:
    """Flat name -> keys in the nested state dict, from torch's planner data."""
    if planner is None:
        return {}
    if not isinstance(planner, dict):
        raise damaged(path, "paths in the state dict that are no mapping")
    for name, keys in planner.items():
        if (
            not isinstance(name, str)
            or not isinstance(keys, tuple)
            or not keys
            or not all(isinstance(key, str | int) for key in keys)
        ):
            raise damaged(path, "a path in the state dict that is no list of keys")
    return planner


def _fields(path: Path, value: Any, kind: str) -> dict[str, Any]:
    """The attributes of a record of class `kind`."""
    if not isinstance(value, Record) or value.kind != kind or not isinstance(value.state, dict):
        raise damaged(path, f"something else where a {kind} was expected")
    return value.state
