"""Read one piece of a torch.distributed checkpoint: a torch.save archive within a `.distcp` file.

`distributed` assembles tensors from pieces.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from moegeo_cli.checkpoints.headers import TensorInfo
from moegeo_cli.checkpoints.metadata import Piece, SavedTensor
from moegeo_cli.checkpoints.pickles import ALL_DTYPES, describe_tensor, load_weights_only
from moegeo_cli.checkpoints.safe_files import open_regular, read_exactly
from moegeo_cli.errors import IncompleteCheckpointError

METADATA = ".metadata"


def read_piece(path: Path, piece: Piece) -> bytes:
    """The archive of a piece as stored."""
    with open_regular(path) as (file, _):
        file.seek(piece.start)
        return read_exactly(file, piece.length, path)


def load_piece(path: Path, piece: Piece, tensor: SavedTensor) -> Any:
    """The values of a piece, checked against the dtype and shape in `.metadata`.

    Raises:
        IncompleteCheckpointError: the archive is damaged or holds something else.
        UnsafeFileError: it would run code.
    """
    with open_regular(path) as (file, _):
        archive = _FileRange(file, piece.start, piece.length)
        try:
            with zipfile.ZipFile(archive) as opened:
                # torch never compresses, and a compressed entry could unpack to any size
                packed = any(entry.compress_type for entry in opened.infolist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise broken_file(path, f"{type(error).__name__} at byte {piece.start}") from None
        if packed:
            raise broken_file(path, f"a compressed archive at byte {piece.start}")
        archive.seek(0)
        loaded = load_weights_only(cast("IO[bytes]", archive), path, mmap=False)
    info = _describe_dense(loaded)
    if info is None or (info.dtype, info.shape) != (tensor.dtype, piece.shape):
        what = type(loaded).__name__ if info is None else f"{info.dtype} {list(info.shape)}"
        raise broken_file(
            path,
            f"{what} at byte {piece.start} where {METADATA} says "
            f"{tensor.dtype} {list(piece.shape)}",
        )
    return loaded


def _describe_dense(value: Any) -> TensorInfo | None:
    """Dtype and shape of a dense tensor in main memory; None for anything else."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if value.layout != torch.strided or value.device.type != "cpu":
        return None
    return describe_tensor(value)


def torch_dtype(code: str) -> Any:
    """The torch dtype of a safetensors dtype name."""
    import torch

    name = next(name for name, known in ALL_DTYPES.items() if known == code)
    return getattr(torch, name.removeprefix("torch."))


def broken_file(path: Path, found: str) -> IncompleteCheckpointError:
    """The error for a truncated or damaged file of pieces."""
    return IncompleteCheckpointError(
        f"{path.name} is truncated or damaged",
        found=found[:300],
        hint="copy or save the checkpoint again; if it is still being written, wait",
        context={"path": str(path)},
    )


class _FileRange(io.RawIOBase):
    """A range of a file as a file object, so that torch reads a piece in place."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """True, for `io`."""
        return True

    def seekable(self) -> bool:
        """True, for `io`."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position within the range, in bytes."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer up to the end of the range; returns the number of bytes."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        self._file.seek(self._start + self._at)
        done = self._file.readinto(view[:count])  # type: ignore[attr-defined]
        self._at += done
        return int(done)
