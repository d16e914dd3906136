"""`WeightIndex`: the stored tensors of one checkpoint by name, whichever files they lie in.

This module reads safetensors and torch's pickled files, single or sharded. `distributed` and
`gguf_file` have subclasses for their layouts. `effective` turns stored tensors into the model's.
Safetensors files are opened by their headers alone. Pickled files are opened by torch on first use,
restricted to weights and memory-mapped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from moegeo_cli.checkpoints.headers import Header, TensorInfo, read_header, read_raw, read_tensor
from moegeo_cli.checkpoints.pickles import (
    TORCH_DTYPES,
    check_pickled,
    describe_tensor,
    load_pickled,
    tensor_bytes,
)
from moegeo_cli.checkpoints.safe_files import open_regular, read_exactly
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    UnsupportedLayoutError,
)


class WeightIndex:
    """The stored tensors of one checkpoint: names, shapes and dtypes at once, values on request.

    Attributes:
        folder: the checkpoint's folder.
        layout: a value of `opening.LAYOUT_FILES`, or `DISTRIBUTED`, `GGUF` or `ADAPTER`.
        files: the weight files, sorted by name.
        obstacle: the error that a model cannot be loaded from these tensors; None where it can,
            as far as is known.
        left_out: number of other tensors in the files (an optimizer's state), by their first key.
        schemes: quantisation schemes of the layout itself (GGUF), by name.
        dequantised: number of tensors that are made from quantised ones of these schemes.
    """

    obstacle: MoegeoError | None = None
    left_out: Mapping[str, int] = MappingProxyType({})
    schemes: tuple[str, ...] = ()
    dequantised: int = 0

    def __init__(self, folder: Path, layout: str, files: Mapping[Path, tuple[str, ...] | None]):
        """Open the files' headers.

        Args:
            folder: the checkpoint's folder.
            layout: a value of `opening.LAYOUT_FILES`.
            files: file -> tensor names that the shard index lists for it; None for all that the
                file holds.

        Raises:
            IncompleteCheckpointError: a file is truncated, or lacks a tensor of the shard index.
            PathError: a file is unreadable.
        """
        self.folder = folder
        self.layout = layout
        self.files = tuple(sorted(files))
        self._expected = dict(files)
        self._headers: dict[Path, Header] = {}
        self._pickled: dict[Path, dict[str, Any]] = {}
        self._entries: dict[str, tuple[Path, TensorInfo]] | None = None
        if all(path.suffix == ".safetensors" for path in self.files):
            self._headers = {path: read_header(path) for path in self.files}
            self._entries = self._place()
        else:
            for path in self.files:
                check_pickled(path)

    @property
    def cached_entries(self) -> int:
        """How many tensor entries (name, shape, place) are cached in memory."""
        return len(self._entries or ())

    def names(self) -> tuple[str, ...]:
        """Names of all tensors, sorted."""
        return tuple(sorted(self._table()))

    def __contains__(self, name: object) -> bool:
        return name in self._table()

    def __len__(self) -> int:
        return len(self._table())

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            IncompleteCheckpointError: no such tensor.
        """
        return self._entry(name)[1].shape

    def dtype(self, name: str) -> str:
        """Dtype of a tensor by its safetensors name: F32, BF16, ..."""
        return self._entry(name)[1].dtype

    def file_of(self, name: str) -> Path:
        """The file in which a tensor lies."""
        return self._entry(name)[0]

    def info(self, name: str) -> TensorInfo:
        """Dtype, shape and place of a tensor; for a pickled one the place is (0, size in bytes)."""
        return self._entry(name)[1]

    def header(self, path: Path) -> Header | None:
        """The header of one of `files`; None for a pickled file, which has none."""
        return self._headers.get(path)

    def read(self, name: str) -> np.ndarray[Any, Any]:
        """Values of a tensor as a NumPy array; bfloat16 and float16 are returned as float32.

        Raises:
            IncompleteCheckpointError: no such tensor, or the file ends before it.
            UnsupportedLayoutError: a quantised dtype.
        """
        path, info = self._entry(name)
        if path in self._headers:
            return read_tensor(path, info)
        tensor = self._tensor(path, name)
        if info.dtype in {"BF16", "F16"}:
            tensor = tensor.float()
        elif info.dtype not in TORCH_DTYPES.values():
            raise UnsupportedLayoutError(f"{name} has dtype {info.dtype}, which is not read")
        return np.array(tensor.detach().cpu().numpy())

    def _tensor(self, path: Path, name: str) -> Any:
        """A tensor of a pickled file, memory-mapped."""
        if path not in self._pickled:
            self._pickled[path] = load_pickled(path)
        return self._pickled[path][name]

    def unmap(self) -> None:
        """Close pickled files, whose mapped pages count as memory; `tensor` opens them again."""
        self._pickled.clear()

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A tensor, or some of its rows, as a torch tensor of its stored dtype.

        Args:
            name: the tensor's name.
            rows: (start, stop) along the first dimension; None for all.

        Raises:
            IncompleteCheckpointError: no such tensor, or the file ends before it.
            UnsupportedLayoutError: a dtype that torch does not have.
        """
        path, info = self._entry(name)
        if path in self._headers:
            from moegeo_cli.checkpoints.tensors import read_stored

            return read_stored(path, name, info, rows)
        found = self._tensor(path, name)
        return found[slice(*rows)].clone() if rows and found.ndim else found.clone()

    def stored_bytes(self, name: str, rows: tuple[int, int] | None = None) -> bytes:
        """The stored bytes of a tensor, or of some of its rows.

        Args:
            name: the tensor's name.
            rows: (start, stop) along the first dimension; None for all.

        Raises:
            IncompleteCheckpointError: no such tensor, or the file ends before it.
        """
        path, info = self._entry(name)
        if path in self._headers:
            return read_raw(path, info, rows)
        return tensor_bytes(self.tensor(name, rows))

    def is_stored(self, name: str) -> bool:
        """Whether `stored_bytes` gives the tensor's values themselves, not quantised ones."""
        return True

    def slices_cheaply(self, name: str) -> bool:
        """Whether reading some rows of a tensor reads no more than these rows."""
        return self._entry(name)[0] in self._headers or self.layout.startswith("pytorch")

    def parts(self, name: str) -> tuple[tuple[Path, TensorInfo], ...]:
        """(file, place) of each stored tensor that a tensor is made of."""
        return (self._entry(name),)

    @property
    def adapted(self) -> frozenset[str]:
        """Names of the tensors that a merged adapter changes."""
        return frozenset()

    def describe(self, unused: Mapping[str, int]) -> dict[str, Any] | None:
        """How these tensors were made from the stored ones, for JSON; None if they are the stored.

        Args:
            unused: reason -> number of tensors that the model does not use.
        """
        return None

    def check_type(self, model_type: str) -> None:
        """Check that the tensors can belong to a transformers model of this type.

        Raises:
            UnsupportedLayoutError: they cannot.
        """

    def read_bytes(self, name: str) -> bytes:
        """The stored bytes of a tensor of any dtype, for hashing."""
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
            header = self.header(path)
            if header is not None:  # for a Hub revision the file may hold its header alone
                total += header.file_size
                continue
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
        """Tensor -> (file, place), from headers or pickled tensors, checked against the index."""
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
                            f"{name} lies in {owner.name}, but the index says {path.name}: shards "
                            "were exchanged, or the index belongs to another save",
                            found=f"{len(held)} other tensors in {path.name}",
                            hint="download or copy the shards and their index again",
                            context={"tensor": name, "path": str(path)},
                        )
                    raise IncompleteCheckpointError(
                        f"{path.name} lacks the tensor {name}, which the index lists for it",
                        found=f"{len(held)} other tensors",
                        hint="save or download this file again",
                        context={"tensor": name, "path": str(path)},
                    )
                table[name] = (path, held[name])
        return table
