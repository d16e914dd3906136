"""The tensors of one checkpoint by name, whichever files they lie in.

Four layouts are read: one safetensors file or several with an index, and the same two in
torch's pickled format. Safetensors are opened by their headers alone; pickled files are
opened by torch on first use, restricted to weights and mapped instead of read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.headers import (
    MAX_HEADER_BYTES,
    Header,
    TensorInfo,
    is_there,
    list_names,
    open_regular,
    parse_json,
    read_exactly,
    read_header,
    read_tensor,
)
from moegeo_cli.checkpoints.pickles import (
    TORCH_DTYPES,
    check_pickled,
    describe_tensor,
    load_pickled,
)
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    NoCheckpointError,
    UnsafeFileError,
    UnsupportedLayoutError,
)

# file -> layout, in the order in which transformers looks for them
LAYOUT_FILES: Mapping[str, str] = {
    "model.safetensors": "safetensors",
    "model.safetensors.index.json": "safetensors-sharded",
    "pytorch_model.bin": "pytorch",
    "pytorch_model.bin.index.json": "pytorch-sharded",
}


_PAIRS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


class WeightIndex:
    """The tensors of one checkpoint: names, shapes and dtypes at once, values on request.

    Attributes:
        folder: the checkpoint's folder.
        layout: a value of `LAYOUT_FILES`.
        files: the weight files, sorted by name.
    """

    def __init__(self, folder: Path, layout: str, files: Mapping[Path, tuple[str, ...] | None]):
        """Open the files' headers.

        Args:
            folder: the checkpoint's folder.
            layout: a value of `LAYOUT_FILES`.
            files: file -> names that the index expects in it, None for all that it holds.
        """
        self.folder = folder
        self.layout = layout
        self.files = tuple(sorted(files))
        self._expected = dict(files)
        self._headers: dict[Path, Header] = {}
        self._pickled: dict[Path, dict[str, Any]] = {}
        self._entries: dict[str, tuple[Path, TensorInfo]] | None = None
        if layout.startswith("safetensors"):
            self._headers = {path: read_header(path) for path in self.files}
            self._entries = self._place()
        else:
            for path in self.files:
                check_pickled(path)

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._table()))

    def __contains__(self, name: object) -> bool:
        return name in self._table()

    def __len__(self) -> int:
        return len(self._table())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; IncompleteCheckpointError where it is missing."""
        return self._entry(name)[1].shape

    def dtype(self, name: str) -> str:
        """Dtype of a tensor in safetensors' words: F32, BF16, ..."""
        return self._entry(name)[1].dtype

    def file_of(self, name: str) -> Path:
        """The file in which a tensor lies."""
        return self._entry(name)[0]

    def info(self, name: str) -> TensorInfo:
        """Where a tensor lies; the offsets of a pickled tensor are 0 and its size in bytes."""
        return self._entry(name)[1]

    def header(self, path: Path) -> Header | None:
        """The header of one of `files`; None for a pickled file, which has none."""
        return self._headers.get(path)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Values of a tensor; bfloat16 and float16 come as float32.

        Raises:
            IncompleteCheckpointError: no such tensor, or the file ends before it.
            UnsupportedLayoutError: a quantised dtype.
        """
        path, info = self._entry(name)
        if path in self._headers:
            return read_tensor(path, info)
        tensor = self._pickled[path][name]
        if info.dtype in {"BF16", "F16"}:
            tensor = tensor.float()
        elif info.dtype not in TORCH_DTYPES.values():
            raise UnsupportedLayoutError(f"{name} has dtype {info.dtype}, which is not read")
        return np.array(tensor.detach().cpu().numpy())

    def mapped(self, name: str) -> Any:
        """A tensor of a pickled layout as torch has mapped it, not yet read."""
        path, _ = self._entry(name)
        return self._pickled[path][name]

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor, of any dtype."""
        path, info = self._entry(name)
        if path not in self._headers:
            return self.read(name).tobytes()
        with open_regular(path) as (file, _):
            file.seek(info.start)
            return read_exactly(file, info.end - info.start, path)

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        total = 0
        for path in self.files:
            with open_regular(path) as (_, size):
                total += size
        return total

    @property
    def parameters(self) -> int:
        """Number of stored elements."""
        return sum(info.elements for _, info in self._table().values())

    @property
    def dtype_counts(self) -> dict[str, int]:
        """Number of stored elements by dtype."""
        counts: Counter[str] = Counter()
        for _, info in self._table().values():
            counts[info.dtype] += info.elements
        return dict(sorted(counts.items()))

    def _entry(self, name: str) -> tuple[Path, TensorInfo]:
        try:
            return self._table()[name]
        except KeyError:
            raise IncompleteCheckpointError(
                f"the tensor {name} is missing from {self.folder.name}",
                found=f"{len(self)} tensors in {len(self.files)} files",
                hint="save or download the checkpoint again",
                context={"tensor": name},
            ) from None

    def _table(self) -> dict[str, tuple[Path, TensorInfo]]:
        if self._entries is None:
            self._pickled = {path: load_pickled(path) for path in self.files}
            self._entries = self._place()
        return self._entries

    def _place(self) -> dict[str, tuple[Path, TensorInfo]]:
        """Bring headers (or pickled tensors) and the index together."""
        table: dict[str, tuple[Path, TensorInfo]] = {}
        for path in self.files:
            held: Mapping[str, TensorInfo]
            if path in self._headers:
                held = self._headers[path].tensors
            else:
                held = {
                    name: describe_tensor(tensor) for name, tensor in self._pickled[path].items()
                }
            expected = self._expected[path]
            for name in held if expected is None else expected:
                if name not in held:
                    owner = next(
                        (p for p in self._headers if name in self._headers[p].tensors), None
                    )
                    if owner is not None:
                        raise IncompleteCheckpointError(
                            f"{name} lies in {owner.name}, and the index promises it in "
                            f"{path.name}: shards were exchanged, or the index is of another save",
                            found=f"{len(held)} other tensors in {path.name}",
                            hint="download or copy the shards and their index again",
                            context={"tensor": name, "path": str(path)},
                        )
                    raise IncompleteCheckpointError(
                        f"{path.name} lacks the tensor {name} that the index promises",
                        found=f"{len(held)} other tensors",
                        hint="save or download this file again",
                        context={"tensor": name, "path": str(path)},
                    )
                table[name] = (path, held[name])
        return table


def detect_layout(folder: Path) -> str | None:
    """The layout of the folder's weights by file names; None where no weights are."""
    for name, layout in LAYOUT_FILES.items():
        if is_there(folder / name):
            return layout
    return None


def open_weights(folder: Path) -> WeightIndex:
    """Open a checkpoint's weights; for safetensors this reads every header and nothing else.

    Args:
        folder: a folder in transformers' layout, or one file that holds a state dict.

    Raises:
        NoCheckpointError: no weights in the folder.
        IncompleteCheckpointError: a file truncated, a shard or an index missing.
        UnsafeFileError: an index that points outside the folder.
    """
    if folder.is_file():
        kind = "safetensors" if folder.suffix == ".safetensors" else "pytorch"
        return WeightIndex(folder.parent, kind, {folder: None})
    layout = detect_layout(folder)
    if layout is None:
        shards = sorted(path.name for path in folder.glob("*-of-*.safetensors"))
        if shards:
            raise IncompleteCheckpointError(
                f"{folder.name} has shards but no model.safetensors.index.json",
                found=", ".join(shards[:4]),
                hint="copy the index file as well; a checkpoint gets it last",
            )
        raise NoCheckpointError(
            f"{folder} holds no weights",
            found=", ".join(list_names(folder)[:8]) or "nothing",
            hint="give a folder with model.safetensors or its shards and index",
        )
    _refuse_two(folder)
    file = folder / next(name for name, value in LAYOUT_FILES.items() if value == layout)
    if layout.endswith("sharded"):
        return WeightIndex(folder, layout, read_index(file))
    return WeightIndex(folder, layout, {file: None})


def _refuse_two(folder: Path) -> None:
    """Weights saved whole and in shards: one of the two is stale, and no file says which.

    transformers reads the whole ones. An index without shards is a leftover that nobody reads.
    """
    for whole, index in _PAIRS:
        if not (is_there(folder / whole) and is_there(folder / index)):
            continue
        document = read_json(folder / index)
        named = document.get("weight_map") if isinstance(document, dict) else None
        shards = sorted({str(v) for v in named.values()}) if isinstance(named, dict) else []
        there = [s for s in shards if s != whole and "/" not in s and is_there(folder / s)]
        if there:
            raise UnsupportedLayoutError(
                f"{folder.name} holds its weights twice: {whole}, which transformers reads, "
                f"and the shards of {index}",
                found=f"{whole}, {', '.join(there[:3])}",
                hint="move the stale ones away: of an earlier save, or of a merge",
            )


def read_index(path: Path) -> dict[Path, tuple[str, ...]]:
    """Read a shard index: file -> the tensors that it should hold.

    Raises:
        IncompleteCheckpointError: not an index, or shards that are not there, by name.
        UnsafeFileError: a shard outside the checkpoint's folder.
    """
    document = read_json(path)
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise IncompleteCheckpointError(
            f"{path.name} names no tensors", hint="save or download the index again"
        )
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise IncompleteCheckpointError(f"{path.name} gives no file for the tensor {name}")
        shards.setdefault(shard, []).append(name)
    for shard in shards:
        _check_shard_name(path, shard)
    missing = sorted(shard for shard in shards if not is_there(path.parent / shard))
    if missing:
        raise IncompleteCheckpointError(
            f"{len(missing)} of {len(shards)} shards are missing: {', '.join(missing[:8])}",
            found=", ".join(sorted(set(shards) - set(missing))[:8]) or "none of them",
            hint="copy or download the missing files; if it is still being written, wait",
            context={"missing": missing},
        )
    return {path.parent / shard: tuple(names) for shard, names in shards.items()}


def read_json(path: Path, limit: int = MAX_HEADER_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes.

    Raises:
        PathError: absent or unreadable.
        IncompleteCheckpointError: not JSON, or longer than `limit`.
    """
    with open_regular(path) as (file, size):
        if size > limit:
            raise IncompleteCheckpointError(f"{path.name} has {size} bytes, too long to be right")
        raw = read_exactly(file, size, path)
    return parse_json(raw, path)


def _check_shard_name(index: Path, shard: str) -> None:
    """Refuse a shard name that leads out of the index's folder."""
    parts = PurePosixPath(shard.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in shard or "\0" in shard or not shard:
        raise UnsafeFileError(
            f"{index.name} points outside the checkpoint's folder, and is refused",
            found=repr(shard)[:200],
            hint="get the checkpoint from a source that you trust",
        )
