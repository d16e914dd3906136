"""Read a GGUF file of llama.cpp as a `WeightIndex`, through llama.cpp's own package gguf.

Names are translated to transformers' by a family's key map (`key_maps`). The package dequantises
quantised tensors, a tensor or some of its rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.headers import Header, TensorInfo
from moegeo_cli.checkpoints.key_maps import (
    Source,
    Translation,
    other_type_error,
    saved_tensors,
    translate,
)
from moegeo_cli.checkpoints.layouts import GGUF
from moegeo_cli.checkpoints.safe_files import open_regular
from moegeo_cli.checkpoints.tensor_parts import Sizes, part_shape, take_part
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, UnsupportedLayoutError

MAGIC = b"GGUF"
# Unquantised GGUF types and their safetensors names. Other types are dequantised to float32.
PLAIN: Mapping[str, str] = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64",
    "I8": "I8", "I16": "I16", "I32": "I32", "I64": "I64",
}  # fmt: skip


class GGUFWeights(WeightIndex):
    """The tensors of a model in a GGUF file; see `WeightIndex`."""

    def __init__(self, folder: Path, path: Path, config: Mapping[str, Any] | None = None) -> None:
        """Read the file's names, shapes and types.

        Args:
            folder: the checkpoint's folder.
            path: the file.
            config: the parsed config.json; None where there is none.

        Raises:
            UnsupportedLayoutError: the package gguf is not installed, or the file is one of
                several.
            IncompleteCheckpointError: the file is truncated or damaged, or does not fit config.
        """
        super().__init__(folder, GGUF, {})
        config = config or {}
        self.files = (path,)
        self._sizes = Sizes.of(config)
        self._tensors, architecture = _read(path)
        self._named = translate(
            saved_tensors({name: name for name in self._tensors}), "gguf", config.get("model_type"),
            folder, architecture=architecture,
        )  # fmt: skip
        if isinstance(self._named, Translation):
            self._sources: Mapping[str, tuple[Source, ...]] = self._named.sources
        else:
            self.obstacle = self._named
            self._sources = {name: (Source(name),) for name in self._tensors}
        self._entries = {name: (path, self._describe(name)) for name in self._sources}
        self.schemes = tuple(sorted({
            f"GGUF {kind}" for kind in map(self._kind, self._tensors) if kind not in PLAIN
        }))  # fmt: skip
        self.dequantised = sum(
            any(self._kind(source.saved) not in PLAIN for source in sources)
            for sources in self._sources.values()
        )

    def header(self, path: Path) -> Header | None:
        """None: the file's header is not read separately from its tensors."""
        return None

    def read(self, name: str) -> Any:
        """See `WeightIndex`."""
        tensor = self.tensor(name)
        return (tensor.float() if self.dtype(name) in ("BF16", "F16") else tensor).numpy()

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """See `WeightIndex`; quantised tensors are returned in float32.

        Raises:
            UnsupportedLayoutError: a type that the package cannot dequantise.
        """
        import torch

        self._entry(name)
        parts = [self._part(source, rows) for source in self._sources[name]]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def stored_bytes(self, name: str, rows: tuple[int, int] | None = None) -> bytes:
        """See `WeightIndex`. For a part of a saved tensor, the bytes of the whole saved tensor."""
        self._entry(name)
        return b"".join(
            self._tensors[source.saved].data[self._cut(source, rows)].tobytes()
            for source in self._sources[name]
        )

    def read_bytes(self, name: str) -> bytes:
        """See `WeightIndex`."""
        return self.stored_bytes(name)

    def is_stored(self, name: str) -> bool:
        """See `WeightIndex`."""
        sources = self._sources[name]
        first = sources[0]
        return len(sources) == 1 and first.part is None and self._kind(first.saved) in PLAIN

    def slices_cheaply(self, name: str) -> bool:
        """See `WeightIndex`."""
        self._entry(name)
        return all(source.part is None for source in self._sources[name])

    def check_type(self, model_type: str) -> None:
        """See `WeightIndex`."""
        if not isinstance(self._named, Translation):
            raise self._named
        other = other_type_error(self._named.key_map, model_type, self.folder)
        if other is not None:
            raise other

    def _kind(self, saved: str) -> str:
        return str(self._tensors[saved].tensor_type.name)

    def _describe(self, name: str) -> TensorInfo:
        sources = self._sources[name]
        shapes = [self._shape(source) for source in sources]
        shape = shapes[0]
        if len(shapes) > 1:
            if any((s[0], *s[2:]) != (shape[0], *shape[2:]) for s in shapes):
                raise _broken(self.files[0], f"{name} out of {', '.join(map(str, shapes))}")
            shape = (shape[0], sum(s[1] for s in shapes), *shape[2:])
        kinds = {PLAIN.get(self._kind(source.saved), "F32") for source in sources}
        size = sum(int(self._tensors[source.saved].data.nbytes) for source in sources)
        return TensorInfo(kinds.pop() if len(kinds) == 1 else "F32", shape, 0, size)

    def _shape(self, source: Source) -> tuple[int, ...]:
        whole = tuple(int(n) for n in reversed(self._tensors[source.saved].shape))
        try:
            return part_shape(source.part, whole, self._sizes)
        except ValueError as error:
            raise IncompleteCheckpointError(
                f"config.json and {source.saved} do not fit each other: {error}",
                found=f"{source.saved} {list(whole)}",
                hint="give the config.json of the model that the file was made from",
            ) from None

    def _cut(self, source: Source, rows: tuple[int, int] | None) -> slice:
        return slice(*rows) if rows and source.part is None else slice(None)

    def _part(self, source: Source, rows: tuple[int, int] | None) -> Any:
        """The values of a source, or of some of its rows, as a torch tensor."""
        held = self._tensors[source.saved]
        values = _values(self.files[0], held, held.data[self._cut(source, rows)])
        if source.part is None:
            return values
        return take_part(source.part, values, self._sizes)[slice(*rows) if rows else ...]


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """(name -> tensor of the file, the file's general.architecture)."""
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise UnsupportedLayoutError(
            f"{path.name} is a GGUF file, and the package gguf that reads it is not installed",
            hint="pip install 'moegeo[gguf]'",
        ) from error
    with open_regular(path) as (file, _):
        if file.read(len(MAGIC)) != MAGIC:
            raise _broken(path, "it does not begin with GGUF")
    try:
        reader = GGUFReader(path)
        architecture = reader.fields["general.architecture"].contents()
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from error
    split = reader.fields.get("split.count")
    if split is not None and int(split.contents()) > 1:
        raise UnsupportedLayoutError(
            f"{path.name} is one of {int(split.contents())} files",
            hint="join them: llama-gguf-split --merge FIRST.gguf OUT.gguf",
        )
    return {tensor.name: tensor for tensor in _whole(reader, path)}, str(architecture)


def _whole(reader: Any, path: Path) -> Iterator[Any]:
    """The tensors, each checked to have as many bytes as its type and shape need."""
    for tensor in reader.tensors:
        if int(tensor.data.nbytes) != int(tensor.n_bytes):
            raise _broken(path, f"{tensor.name}: {tensor.data.nbytes} of {tensor.n_bytes} bytes")
        yield tensor


def _values(path: Path, held: Any, data: Any) -> Any:
    """Stored data of a tensor as a torch tensor, dequantised."""
    import numpy as np
    import torch

    kind = held.tensor_type.name
    if kind in PLAIN and kind != "BF16":
        return torch.from_numpy(np.array(data, dtype=data.dtype.newbyteorder("=")))
    from gguf import dequantize

    try:
        values = torch.from_numpy(np.ascontiguousarray(dequantize(data, held.tensor_type)))
    except NotImplementedError:
        raise UnsupportedLayoutError(
            f"{path.name} holds tensors of type {kind}, which the package gguf cannot dequantise",
            found=held.name,
            hint="pip install --upgrade gguf, or give the checkpoint that it was made from",
        ) from None
    return values.bfloat16() if kind == "BF16" else values


def _broken(path: Path, found: str) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"{path.name} is truncated or damaged",
        found=found[:300],
        hint="download or copy the file again",
        context={"path": str(path)},
    )
