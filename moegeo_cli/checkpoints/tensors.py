"""Read safetensors tensors as torch tensors into memory of their own.

`WeightIndex.tensor` uses it. Files are not memory-mapped, because mapped pages count as memory of
the process, and reading a model layer by layer (`models/streaming/`) must know what it holds.
"""

from __future__ import annotations

from pathlib import Path

import torch

from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.safe_files import open_regular
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

ALIGNMENT = 64  # bytes: a cache line, and torch's own allocations
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def read_stored(
    path: Path, name: str, info: TensorInfo, rows: tuple[int, int] | None = None
) -> torch.Tensor:
    """Read a tensor of a safetensors file, or some of its rows, in its stored dtype.

    Args:
        path: the file.
        name: the tensor's name, for errors.
        info: its dtype, shape and place.
        rows: (start, stop) along the first dimension; None for all.

    Raises:
        IncompleteCheckpointError: the file ends before the tensor.
        UnsupportedLayoutError: a dtype that torch does not have.
    """
    if info.dtype not in DTYPES:
        raise UnsupportedLayoutError(
            f"{name} has dtype {info.dtype}, which is not read",
            hint="give the unquantised checkpoint",
        )
    first = info.shape[0] if info.shape else 1
    start, stop = rows or (0, first)
    shape = (stop - start, *info.shape[1:]) if info.shape else ()
    row_bytes = (info.end - info.start) // max(first, 1)
    # A matrix product may round differently with other alignment of its operands. Use the
    # alignment that the tensor would have in a mapped file.
    offset, size = info.start % ALIGNMENT, (stop - start) * row_bytes
    space = torch.empty(size + 2 * ALIGNMENT, dtype=torch.uint8)
    offset += -space.data_ptr() % ALIGNMENT
    raw = memoryview(space.numpy().data)[offset : offset + size]
    with open_regular(path) as (file, _):
        file.seek(info.start + start * row_bytes)
        if file.readinto(raw) != len(raw):  # type: ignore[attr-defined]
            raise IncompleteCheckpointError(
                f"{path.name} ends before the tensor {name}",
                hint="the file changed while it was read: run the command again",
            )
    return space[offset : offset + size].view(DTYPES[info.dtype]).reshape(shape)
