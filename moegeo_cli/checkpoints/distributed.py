"""A torch.distributed checkpoint of a model as the weights of one checkpoint.

Its `.metadata` (`metadata`) lists every tensor in pieces, one or more a rank; each piece is a
torch.save archive of its own somewhere in a `.distcp` file. Names, shapes and dtypes come from
the `.metadata` alone, without torch; a tensor's values are put together when they are asked for.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from moegeo_cli.checkpoints.headers import (
    DTYPE_BITS,
    Header,
    TensorInfo,
    is_there,
    list_names,
    open_regular,
    read_exactly,
)
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, find_distributed
from moegeo_cli.checkpoints.metadata import Piece, SavedState, SavedTensor, read_metadata
from moegeo_cli.checkpoints.names import Naming, name_tensors, refuse_other_type
from moegeo_cli.checkpoints.pickles import ALL_DTYPES, describe_tensor, load_weights_only
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, NoCheckpointError, UnsupportedLayoutError

METADATA = ".metadata"


class DistributedWeights(WeightIndex):
    """The tensors of a model in a torch.distributed checkpoint.

    Attributes:
        place: the folder of `.metadata`: the checkpoint's own, or one in it.
        naming: which saved tensors are the model's, and what was left out.
    """

    def __init__(self, folder: Path) -> None:
        """Read the `.metadata` and check that every file it names is there and whole.

        Args:
            folder: the checkpoint's folder.

        Raises:
            NoCheckpointError: no torch.distributed checkpoint, or none of a model.
            IncompleteCheckpointError: still being written, cut, or files missing, by name.
            UnsafeFileError: a `.metadata` that asks for code to run, or for files elsewhere.
            UnsupportedLayoutError: several models, or compressed pieces.
        """
        super().__init__(folder, DISTRIBUTED, {})
        place = find_distributed(folder)
        if place is None:
            raise NoCheckpointError(f"{folder} holds no torch.distributed checkpoint")
        self.place = place
        self._state = _read_state(place)
        self.naming: Naming = name_tensors(self._state, folder)
        self.obstacle, self.left_out = self.naming.obstacle, self.naming.left_out
        self.files = (place / METADATA, *(place / name for name in self._state.spans))
        self._entries = {name: self._describe(name) for name in self.naming.sources}

    def header(self, path: Path) -> Header | None:
        """The whole of `.metadata` counts as header; the other files have none."""
        if path.name != METADATA:
            return None
        with open_regular(path) as (_, size):
            return Header({}, {}, size, size)

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A tensor as a torch tensor of its own dtype, put together from its pieces.

        Args:
            name: the tensor's.
            rows: (start, stop) along the first dimension; None for all.

        Raises:
            IncompleteCheckpointError: no such tensor, or a piece that is damaged.
            UnsafeFileError: a piece that asks for code to run.
        """
        import torch

        self._entry(name)
        parts = [self._assemble(saved) for saved in self.naming.sources[name]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return whole[slice(*rows)].clone() if rows and whole.ndim else whole

    def read_bytes(self, name: str) -> bytes:
        """The archives of a tensor's pieces as they are stored: enough to tell a change."""
        self._entry(name)
        return b"".join(
            _read_piece(self.place / piece.file, piece)
            for saved in self.naming.sources[name]
            for piece in self._state.tensors[saved].pieces
        )

    def check_type(self, model_type: str) -> None:
        """Check that the tensors can be those of a transformers model of this type.

        Raises:
            UnsupportedLayoutError: names without a map, of another type, or tensors that have
                no place in that model.
        """
        if self.obstacle is not None:
            raise self.obstacle
        if self.naming.family is None:
            return
        other = refuse_other_type(self.naming.family, model_type, self.folder)
        if other is not None:
            raise other
        for saved in self.naming.zero:
            if self._assemble(saved).any():
                raise UnsupportedLayoutError(
                    f"torchtitan trained {self.folder.name} with a selection bias, and "
                    f"transformers' {model_type} has none: it would route otherwise than trained",
                    found=f"{saved} is not zero; torchtitan's own conversion drops it",
                    hint="train with load_balance_coeff unset to measure such a model",
                )

    def _tensor(self, path: Path, name: str) -> Any:
        return self.tensor(name)

    def _describe(self, name: str) -> tuple[Path, TensorInfo]:
        """The file of a tensor's first piece, and its shape and dtype."""
        parts = [self._state.tensors[saved] for saved in self.naming.sources[name]]
        first = parts[0]
        shape = first.shape
        if len(parts) > 1:
            if any(
                part.dtype != first.dtype
                or len(part.shape) < 2
                or (part.shape[0], *part.shape[2:]) != (shape[0], *shape[2:])
                for part in parts
            ):
                raise IncompleteCheckpointError(
                    f"{name} cannot be joined from tensors of different shapes",
                    found=", ".join(f"{part.dtype} {list(part.shape)}" for part in parts),
                )
            shape = (shape[0], sum(part.shape[1] for part in parts), *shape[2:])
        info = TensorInfo(first.dtype, shape, 0, 0)
        size = -(-info.elements * DTYPE_BITS[info.dtype] // 8)
        file = first.pieces[0].file if first.pieces else METADATA
        return self.place / file, TensorInfo(first.dtype, shape, 0, size)

    def _assemble(self, saved: str) -> Any:
        """One saved tensor: its only piece as it is, or its pieces side by side."""
        import torch

        tensor = self._state.tensors[saved]
        pieces = [piece for piece in tensor.pieces if 0 not in piece.shape]
        if len(pieces) == 1:
            return _load_piece(self.place / pieces[0].file, pieces[0], tensor).contiguous()
        whole = torch.empty(tensor.shape, dtype=_torch_dtype(tensor.dtype))
        for piece in pieces:
            box = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.shape, strict=True))
            whole[box] = _load_piece(self.place / piece.file, piece, tensor)
        return whole


def _read_state(place: Path) -> SavedState:
    """The `.metadata` of a folder, whose files are all there in the size that it says."""
    if not is_there(place / METADATA):
        raise IncompleteCheckpointError(
            f"{place.name} has no {METADATA}, which torch writes last",
            found=", ".join(list_names(place)[:8]) or "an empty folder",
            hint="if it is still being written, wait; else copy it with its hidden files",
        )
    state = read_metadata(place / METADATA)
    missing = [name for name in state.spans if not is_there(place / name)]
    if missing:
        raise IncompleteCheckpointError(
            f"{len(missing)} of {len(state.spans)} files are missing: {', '.join(missing[:8])}",
            found=", ".join(sorted(set(state.spans) - set(missing))[:8]) or "none of them",
            hint="copy or download the missing files; if it is still being written, wait",
            context={"missing": missing},
        )
    for name, spans in state.spans.items():
        start, length = spans[-1]
        with open_regular(place / name) as (_, size):
            if size != start + length:
                raise _broken(place / name, f"{size} bytes where {METADATA} says {start + length}")
    return state


def _read_piece(path: Path, piece: Piece) -> bytes:
    with open_regular(path) as (file, _):
        file.seek(piece.start)
        return read_exactly(file, piece.length, path)


def _load_piece(path: Path, piece: Piece, tensor: SavedTensor) -> Any:
    """One piece's values, checked to be what the `.metadata` says of it."""
    with open_regular(path) as (file, _):
        archive = _Part(file, piece.start, piece.length)
        try:
            with zipfile.ZipFile(archive) as opened:
                # torch never compresses; what a compressed entry unpacks to is not bounded
                packed = any(entry.compress_type for entry in opened.infolist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise _broken(path, f"{type(error).__name__} at byte {piece.start}") from None
        if packed:
            raise _broken(path, f"a compressed archive at byte {piece.start}")
        archive.seek(0)
        loaded = load_weights_only(cast("IO[bytes]", archive), path, mmap=False)
    info = _describe_dense(loaded)
    if info is None or (info.dtype, info.shape) != (tensor.dtype, piece.shape):
        what = type(loaded).__name__ if info is None else f"{info.dtype} {list(info.shape)}"
        raise _broken(
            path,
            f"{what} at byte {piece.start} where {METADATA} says "
            f"{tensor.dtype} {list(piece.shape)}",
        )
    return loaded


def _describe_dense(value: Any) -> TensorInfo | None:
    """What a plain tensor in main memory is; None for anything else."""
    import torch

    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return None
    if value.layout != torch.strided or value.device.type != "cpu":
        return None
    return describe_tensor(value)


def _torch_dtype(code: str) -> Any:
    import torch

    name = next(name for name, known in ALL_DTYPES.items() if known == code)
    return getattr(torch, name.removeprefix("torch."))


def _broken(path: Path, found: str) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"{path.name} is truncated or damaged",
        found=found[:300],
        hint="copy or save the checkpoint again; if it is still being written, wait",
        context={"path": str(path)},
    )


class _Part(io.RawIOBase):
    """A part of a file as a file of its own, so that nothing is read twice."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read in any order."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place within the part."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the part reaches."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        self._file.seek(self._start + self._at)
        done = self._file.readinto(view[:count])  # type: ignore[attr-defined]
        self._at += done
        return int(done)
