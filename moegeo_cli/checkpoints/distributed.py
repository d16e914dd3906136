"""Read a torch.distributed checkpoint (FSDP, torchtitan, Megatron-core) as a `WeightIndex`.

Its `.metadata` lists the pieces of every tensor, one or more a rank (see `metadata`). Each piece is
a torch.save archive within a `.distcp` file. Names, shapes and dtypes are read from `.metadata`
alone, without torch. A tensor's values are assembled on request.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.headers import DTYPE_BITS, Header, TensorInfo
from moegeo_cli.checkpoints.key_maps import Source, other_type_error
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, find_distributed
from moegeo_cli.checkpoints.metadata import Piece, SavedState, read_metadata
from moegeo_cli.checkpoints.names import Naming, name_tensors
from moegeo_cli.checkpoints.pieces import (
    METADATA,
    broken_file,
    load_piece,
    read_piece,
    torch_dtype,
)
from moegeo_cli.checkpoints.safe_files import is_there, list_names, open_regular
from moegeo_cli.checkpoints.tensor_parts import Sizes, part_shape, take_part
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, NoCheckpointError, UnsupportedLayoutError


class DistributedWeights(WeightIndex):
    """The tensors of a model in a torch.distributed checkpoint; see `WeightIndex`.

    Attributes:
        place: the folder of `.metadata`: the checkpoint's own, or a subfolder.
        naming: the model's tensors and the number of others.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any] | None = None) -> None:
        """Read `.metadata` and check that every file it names exists in its full size.

        Args:
            folder: the checkpoint's folder.
            config: the parsed config.json; None where there is none. Names of Megatron-core are
                translated with it.

        Raises:
            NoCheckpointError: no torch.distributed checkpoint, or one without a model.
            IncompleteCheckpointError: a file is missing or truncated, or still being written.
            UnsafeFileError: `.metadata` would run code, or names files outside its folder.
            UnsupportedLayoutError: several models, or compressed pieces.
        """
        super().__init__(folder, DISTRIBUTED, {})
        place = find_distributed(folder)
        if place is None:
            raise NoCheckpointError(f"{folder} holds no torch.distributed checkpoint")
        self.place = place
        self._state = _read_state(place)
        config = config or {}
        self._sizes = Sizes.of(config)
        self.naming: Naming = name_tensors(self._state, folder, config.get("model_type"))
        self.obstacle, self.left_out = self.naming.obstacle, self.naming.left_out
        self.files = (place / METADATA, *(place / name for name in self._state.spans))
        self._entries = {name: self._describe(name) for name in self.naming.sources}

    def header(self, path: Path) -> Header | None:
        """A header that covers all of `.metadata`; None for the other files."""
        if path.name != METADATA:
            return None
        with open_regular(path) as (_, size):
            return Header({}, {}, size, size)

    def tensor(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A tensor as a torch tensor of its stored dtype, assembled from its pieces.

        Args:
            name: the tensor's name.
            rows: (start, stop) along the first dimension; None for all.

        Raises:
            IncompleteCheckpointError: no such tensor, or a piece is damaged.
            UnsafeFileError: a piece would run code.
        """
        import torch

        self._entry(name)
        parts = [self._part(source) for source in self.naming.sources[name]]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        return whole[slice(*rows)].clone() if rows and whole.ndim else whole

    def read_bytes(self, name: str) -> bytes:
        """The archives of a tensor's pieces as stored, for hashing."""
        self._entry(name)
        return b"".join(
            read_piece(self.place / piece.file, piece)
            for source in self.naming.sources[name]
            for piece in self._pieces(source)
        )

    def check_type(self, model_type: str) -> None:
        """Check that the tensors can belong to a transformers model of this type.

        Raises:
            UnsupportedLayoutError: no key map has the names, they are of another model type, or
                a tensor that transformers' model lacks is not 0.
        """
        if self.obstacle is not None:
            raise self.obstacle
        if self.naming.key_map is None:
            return
        other = other_type_error(self.naming.key_map, model_type, self.folder)
        if other is not None:
            raise other
        for saved in self.naming.zero:
            if self._assemble(Source(saved)).any():
                raise UnsupportedLayoutError(
                    f"{self.folder.name} was trained with a selection bias, and transformers' "
                    f"{model_type} has none: it would not route as in training",
                    found=f"{saved} is not zero",
                    hint="only models trained without that bias can be measured: do not set "
                    "load_balance_coeff (torchtitan) or moe_router_enable_expert_bias "
                    "(Megatron-core)",
                )

    def _tensor(self, path: Path, name: str) -> Any:
        return self.tensor(name)

    def _describe(self, name: str) -> tuple[Path, TensorInfo]:
        """The file of a tensor's first piece, and its shape and dtype."""
        sources = self.naming.sources[name]
        saved = [self._state.tensors[source.saved] for source in sources]
        shapes = [self._shape(name, source) for source in sources]
        shape, dtype = shapes[0], saved[0].dtype
        if len(shapes) > 1:
            if any(tensor.dtype != dtype for tensor in saved) or any(
                len(part) < 2 or (part[0], *part[2:]) != (shape[0], *shape[2:]) for part in shapes
            ):
                raise IncompleteCheckpointError(
                    f"{name} cannot be joined from tensors of different shapes",
                    found=", ".join(
                        f"{tensor.dtype} {list(part)}"
                        for tensor, part in zip(saved, shapes, strict=True)
                    ),
                )
            shape = (shape[0], sum(part[1] for part in shapes), *shape[2:])
        info = TensorInfo(dtype, shape, 0, 0)
        size = -(-info.elements * DTYPE_BITS[info.dtype] // 8)
        file = saved[0].pieces[0].file if saved[0].pieces else METADATA
        return self.place / file, TensorInfo(dtype, shape, 0, size)

    def _shape(self, name: str, source: Source) -> tuple[int, ...]:
        """The shape of a source: of the rows that it takes of a saved tensor."""
        whole = self._state.tensors[source.saved].shape
        try:
            return part_shape(
                source.part, whole if source.layer is None else whole[1:], self._sizes
            )
        except ValueError as error:
            raise IncompleteCheckpointError(
                f"config.json and {source.saved} do not fit each other: {error}",
                found=f"{source.saved} {list(whole)}",
                hint="give the config.json that the model was trained with, with --config",
                context={"tensor": name},
            ) from None

    def _pieces(self, source: Source) -> list[Piece]:
        """The pieces of a saved tensor that overlap a source."""
        pieces = [p for p in self._state.tensors[source.saved].pieces if 0 not in p.shape]
        if source.layer is None:
            return pieces
        return [p for p in pieces if p.offsets[0] <= source.layer < p.offsets[0] + p.shape[0]]

    def _part(self, source: Source) -> Any:
        """The values of a source: the rows that it takes of a saved tensor."""
        return take_part(source.part, self._assemble(source), self._sizes).contiguous()

    def _assemble(self, source: Source) -> Any:
        """A saved tensor, or one layer of it, assembled from its pieces."""
        import torch

        tensor = self._state.tensors[source.saved]
        pieces, layer = self._pieces(source), source.layer
        if len(pieces) == 1:
            piece = pieces[0]
            whole = load_piece(self.place / piece.file, piece, tensor)
            return (whole if layer is None else whole[layer - piece.offsets[0]]).contiguous()
        start = 0 if layer is None else 1
        whole = torch.empty(tensor.shape[start:], dtype=torch_dtype(tensor.dtype))
        for piece in pieces:
            box = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.shape, strict=True))
            values = load_piece(self.place / piece.file, piece, tensor)
            whole[box[start:]] = values if layer is None else values[layer - piece.offsets[0]]
        return whole


def _read_state(place: Path) -> SavedState:
    """Read a folder's `.metadata`, and check that all its files exist in their full size."""
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
                raise broken_file(
                    place / name, f"{size} bytes where {METADATA} says {start + length}"
                )
    return state
