"""Read safetensors headers and tensors without trusting the file; `WeightIndex` is built on it.

A safetensors file is 8 bytes (the header's length, little-endian), the header (a JSON object of
name -> dtype, shape, data_offsets), and the tensors' bytes without gaps. The header therefore gives
the exact size of a complete file; any other size is truncated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from moegeo_cli.checkpoints.hub_notes import complete_size
from moegeo_cli.checkpoints.safe_files import damaged_error, open_regular, parse_json, read_exactly
from moegeo_cli.errors import UnsupportedLayoutError

# The limit of the safetensors library too. A damaged length must not allocate gigabytes.
MAX_HEADER_BYTES = 100_000_000
# NumPy's limit; no weight of a model has so many.
MAX_DIMENSIONS = 32

DTYPE_BITS: Mapping[str, int] = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip

NUMPY_DTYPES: Mapping[str, str] = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4",
    "I32": "<i4", "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    "BF16": "<u2", "C64": "<c8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype, shape and place of one tensor: byte offsets from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed header.

    Attributes:
        tensors: name -> dtype, shape and place.
        metadata: the text entries of `__metadata__`.
        data_start: byte offset of the first tensor.
        file_size: size of the complete file in bytes.
    """

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    file_size: int


def read_header(path: Path) -> Header:
    """Read and check a safetensors header.

    Args:
        path: the file, or a symbolic link to it.

    Returns:
        The header. Its tensors cover the file's data without gap or overlap.

    Raises:
        PathError: the file is absent, not a regular file, or unreadable.
        IncompleteCheckpointError: the file is truncated, too long, or not a safetensors file.
    """
    with open_regular(path) as (file, size):
        if size < 8:
            raise damaged_error(path, f"{size} bytes; a safetensors file has at least 8")
        length = int.from_bytes(read_exactly(file, 8, path), "little")
        if length > MAX_HEADER_BYTES:
            raise damaged_error(path, f"a header of {length} bytes, more than the format allows")
        if 8 + length > size:
            raise damaged_error(path, f"{size} bytes, but the header alone needs {8 + length}")
        raw = read_exactly(file, length, path)
    document = parse_json(raw, path)
    if not isinstance(document, dict):
        raise damaged_error(path, f"a header that is a {type(document).__name__}, not an object")
    metadata = document.pop("__metadata__", None)
    data_start = 8 + length
    size = complete_size(path, data_start, size)
    tensors = {
        name: _parse_tensor(path, name, entry, data_start, size) for name, entry in document.items()
    }
    _check_coverage(path, tensors, data_start, size)
    texts = metadata.items() if isinstance(metadata, dict) else ()
    kept = {key: value for key, value in texts if isinstance(value, str)}
    return Header(tensors, kept, data_start, size)


def read_tensor(
    path: Path, info: TensorInfo, rows: tuple[int, int] | None = None
) -> np.ndarray[Any, Any]:
    """Read one tensor; bfloat16 and float16 are returned as float32, which holds both exactly.

    Args:
        path: the file.
        info: the tensor's dtype, shape and place.
        rows: (start, stop) along the first dimension; None for all.

    Raises:
        PathError: the file is unreadable.
        IncompleteCheckpointError: the file is shorter than when its header was read.
        UnsupportedLayoutError: a quantised dtype; its bytes alone are not the values.
    """
    if info.dtype not in NUMPY_DTYPES:
        raise UnsupportedLayoutError(
            f"a tensor of dtype {info.dtype} cannot be read as numbers",
            found=f"{info.dtype} {list(info.shape)} in {path.name}",
            hint="dequantise the checkpoint first, or give the unquantised one",
        )
    shape = info.shape if rows is None else (rows[1] - rows[0], *info.shape[1:])
    return as_numbers(read_raw(path, info, rows), info.dtype, shape)


def read_raw(path: Path, info: TensorInfo, rows: tuple[int, int] | None = None) -> bytes:
    """Read the stored bytes of a tensor, or of some of its rows along the first dimension.

    Raises:
        PathError: the file is unreadable.
        IncompleteCheckpointError: the file is shorter than when its header was read.
    """
    start, stop = info.start, info.end
    if rows is not None:
        row_bytes = (info.end - info.start) // max(info.shape[0], 1)
        start, stop = info.start + rows[0] * row_bytes, info.start + rows[1] * row_bytes
    with open_regular(path) as (file, size):
        if info.end > size:
            raise damaged_error(path, f"{size} bytes, but a tensor ends at byte {info.end}")
        file.seek(start)
        return read_exactly(file, stop - start, path)


def as_numbers(raw: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Convert stored bytes to an array; bfloat16 and float16 become float32.

    Args:
        raw: the bytes, little-endian.
        dtype: a key of NUMPY_DTYPES.
        shape: shape of the array.
    """
    values: np.ndarray[Any, Any] = np.frombuffer(raw, dtype=np.dtype(NUMPY_DTYPES[dtype]))
    values = values.reshape(shape)
    if dtype == "BF16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype == "F16":
        return values.astype(np.float32)
    return values.copy()


def _parse_tensor(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> TensorInfo:
    """Check one entry of the header on its own."""
    if not isinstance(entry, dict):
        raise damaged_error(path, f"tensor {name!r} described by a {type(entry).__name__}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or not _is_naturals(shape) or not _is_naturals(offsets):
        raise damaged_error(path, f"tensor {name!r} without a usable dtype, shape or data_offsets")
    if len(shape) > MAX_DIMENSIONS or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged_error(path, f"tensor {name!r} with an impossible shape or data_offsets")
    start, end = data_start + offsets[0], data_start + offsets[1]
    if end > file_size:
        raise damaged_error(path, f"{file_size} bytes, but tensor {name!r} ends at byte {end}")
    bits = DTYPE_BITS.get(dtype)  # the size of an unknown (newer) dtype is not checked
    if bits is not None and math.prod(shape) * bits != (end - start) * 8:
        raise damaged_error(
            path, f"tensor {name!r}, {dtype} of shape {shape}, stored in {end - start} bytes"
        )
    return TensorInfo(dtype, tuple(shape), start, end)


def _is_naturals(value: Any) -> TypeGuard[list[int]]:
    """Whether `value` is a list of integers from 0 to 2**63; a bool does not count as one."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 1 << 63 for item in value
    )


def _check_coverage(
    path: Path, tensors: Mapping[str, TensorInfo], data_start: int, file_size: int
) -> None:
    """Check that the tensors follow each other without a gap, up to the last byte."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise damaged_error(
                path, f"a gap or overlap before tensor {name!r} at byte {info.start}"
            )
        position = info.end
    if position != file_size:
        raise damaged_error(path, f"{file_size} bytes where the header describes {position}")
