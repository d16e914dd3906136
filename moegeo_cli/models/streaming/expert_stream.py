"""Read the experts of a layer one chunk at a time, if the whole layer does not fit in memory.

transformers' eager kernel indexes a fused parameter one expert at a time. The parameter is
replaced by an object that reads the chunk with that expert. Weights that autograd would save for
the backward pass are saved as their position in the files instead, and read again.

Legend: E experts, F inner width, D model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from moegeo_cli.models.conversion import BY_EXPERT, indexes_experts
from moegeo_cli.models.streaming.layer_files import LayerFiles


def chunked_parameters(own: Iterable[str], files: LayerFiles) -> list[tuple[str, list[str]]]:
    """Modules whose experts can be read in chunks, with the names of their fused parameters.

    The module's forward must index the experts one by one, and every fused parameter (E, ., .) must
    be saved expert by expert, or as one tensor whose first axis is the experts.

    Args:
        own: names of a layer's parameters.
        files: the files that fill them.

    Returns:
        (module's path, names of its fused parameters), in the order of the parameters.
    """
    found: dict[str, list[str]] = {}
    for name in own:
        path, _, _ = name.rpartition(".")
        module = files.model.get_submodule(path)
        shape = files.model.get_parameter_or_buffer(name).shape
        if len(shape) == 3 and indexes_experts(module):
            found.setdefault(path, []).append(name)
    return [
        (path, names)
        for path, names in found.items()
        if all(_is_by_expert(name, files) for name in names)
    ]


def _is_by_expert(name: str, files: LayerFiles) -> bool:
    """Whether some experts of a fused parameter can be read without the others."""
    source = files.sources.get(name)
    if source is None or not set(source.operations) <= BY_EXPERT:
        return False
    experts = files.model.get_parameter_or_buffer(name).shape[0]
    return all(
        len(names) == experts or (len(names) == 1 and files.index.shape(names[0])[0] == experts)
        for names in source.patterns.values()
    )


class ExpertChunks:
    """The fused parameters of one experts module, read one chunk of experts at a time.

    Args:
        files: the files that fill them.
        path: the module's path.
        names: full names of its fused parameters.
        chunk_bytes: bytes of a chunk; a chunk holds one expert at least.

    Attributes:
        size: number of experts of a chunk.
    """

    def __init__(self, files: LayerFiles, path: str, names: list[str], chunk_bytes: int) -> None:
        self.files, self.path, self.names = files, path, names
        self.module: Any = files.model.get_submodule(path)
        self.shapes = {n: tuple(files.model.get_parameter_or_buffer(n).shape) for n in names}
        self.dtype = files.model.get_parameter_or_buffer(names[0]).dtype
        self.experts = min(shape[0] for shape in self.shapes.values())
        self.size = max(1, min(self.experts, chunk_bytes // max(self.expert_bytes, 1)))
        self._start = -1
        self._held: dict[str, torch.Tensor] = {}

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert."""
        rows = (torch.Size(shape[1:]).numel() for shape in self.shapes.values())
        return sum(rows) * self.dtype.itemsize

    @property
    def bytes(self) -> int:
        """Bytes of a chunk."""
        return self.size * self.expert_bytes

    @contextlib.contextmanager
    def reading_on_index(self) -> Iterator[None]:
        """A context in which indexing a fused parameter reads that expert from the files."""
        table, empty = self.module._parameters, {}
        for name in self.names:
            own = name.rpartition(".")[2]
            empty[own] = table.pop(own)
            self.module.__dict__[own] = _FusedParameter(self, name)
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
        try:
            with hooks:
                yield
        finally:
            self._drop()
            for own, parameter in empty.items():
                self.module.__dict__.pop(own, None)
                table[own] = parameter

    def expert(self, name: str, place: int) -> torch.Tensor:
        """One expert's slice of a parameter, shape (., .).

        Args:
            name: full name of the parameter.
            place: number of the expert.
        """
        if not 0 <= place < self.shapes[name][0]:
            raise IndexError(place)
        start = place - place % self.size
        self._load(start)
        return self._held[name][place - start]

    def _load(self, start: int) -> None:
        """Load the chunk that begins at expert `start`, and free the previous one."""
        if start == self._start:
            return
        self._drop()
        table, replaced = self.module._parameters, {}
        wanted = {}
        for name, (experts, *rest) in self.shapes.items():
            own = name.rpartition(".")[2]
            replaced[own] = self.module.__dict__.pop(own, None)
            wanted[name] = (start, min(start + self.size, experts))
            rows = max(0, wanted[name][1] - start)
            table[own] = nn.Parameter(
                torch.empty((rows, *rest), dtype=self.dtype, device="meta"), False
            )
        try:
            self.files.load_rows(wanted)
            held = {n: table[n.rpartition(".")[2]].data for n in self.names}
        finally:
            for own, replacement in replaced.items():
                table.pop(own, None)
                if replacement is not None:
                    self.module.__dict__[own] = replacement
        self._held, self._start = held, start

    def _drop(self) -> None:
        self._held, self._start = {}, -1

    def _pack(self, tensor: torch.Tensor) -> Any:
        """Autograd's saving of a tensor: a view of a chunk as its position, others as they are."""
        if tensor.is_meta or not self._held:
            return tensor.detach()  # with its graph, the tensor would keep itself alive
        address = tensor.untyped_storage().data_ptr()
        for name, held in self._held.items():
            if held.untyped_storage().data_ptr() == address:
                return (name, self._start, tensor.size(), tensor.stride(), tensor.storage_offset())
        return tensor.detach()

    def _unpack(self, kept: Any) -> torch.Tensor:
        """The tensor that `_pack` saved; a chunk is read again."""
        if isinstance(kept, torch.Tensor):
            return kept
        name, start, size, stride, offset = kept
        self._load(start)
        return self._held[name].as_strided(size, stride, offset)


class _FusedParameter:
    """Replaces a fused parameter whose experts are read from the files when they are indexed."""

    def __init__(self, chunks: ExpertChunks, name: str) -> None:
        self._chunks, self._name = chunks, name
        self.shape = torch.Size(chunks.shapes[name])
        self.dtype = chunks.dtype
        self.ndim = len(self.shape)

    def __getitem__(self, place: Any) -> torch.Tensor:
        return self._chunks.expert(self._name, int(place))
