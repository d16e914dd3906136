"""Opening a checkpoint's weights by the files that its folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER, adapter_file, has_adapter
from moegeo_cli.checkpoints.distributed import DistributedWeights
from moegeo_cli.checkpoints.gguf_file import GGUFWeights
from moegeo_cli.checkpoints.headers import is_there, list_names
from moegeo_cli.checkpoints.indexes import read_index
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, GGUF, find_distributed, find_gguf
from moegeo_cli.checkpoints.twice import refuse_two
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import IncompleteCheckpointError, NoCheckpointError

# file -> layout, in the order in which transformers looks for them
LAYOUT_FILES: Mapping[str, str] = {
    "model.safetensors": "safetensors",
    "model.safetensors.index.json": "safetensors-sharded",
    "pytorch_model.bin": "pytorch",
    "pytorch_model.bin.index.json": "pytorch-sharded",
}


def detect_layout(folder: Path) -> str | None:
    """The layout of the folder's weights by file names; None where no weights are."""
    for name, layout in LAYOUT_FILES.items():
        if is_there(folder / name):
            return layout
    if find_distributed(folder) is not None:
        return DISTRIBUTED
    if find_gguf(folder) is not None:
        return GGUF
    return ADAPTER if has_adapter(folder) else None


def open_weights(folder: Path, config: Mapping[str, Any] | None = None) -> WeightIndex:
    """Open a checkpoint's weights; for safetensors this reads every header and nothing else.

    Args:
        folder: a folder in transformers' layout, or one file that holds a state dict. Of an
            adapter that lies alone, the adapter's own tensors.
        config: the parsed config.json, where there is one: names of other frameworks need it.

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
    if layout == DISTRIBUTED:
        return DistributedWeights(folder, config)
    if layout == GGUF and (gguf := find_gguf(folder)) is not None:
        return GGUFWeights(folder, gguf, config)
    if layout == ADAPTER:
        found = open_adapter(folder)
        if found is None:
            raise IncompleteCheckpointError(
                f"{folder.name} has adapter_config.json and no adapter",
                found="no adapter_model.safetensors or .bin, and no other weights",
                hint="copy or save the adapter again; if it is still being written, wait",
            )
        return found
    refuse_two(folder)
    file = folder / next(name for name, value in LAYOUT_FILES.items() if value == layout)
    if layout.endswith("sharded"):
        return WeightIndex(folder, layout, read_index(file))
    return WeightIndex(folder, layout, {file: None})


def open_adapter(folder: Path) -> WeightIndex | None:
    """Open the tensors of the adapter in a folder; None where there is none.

    Raises:
        IncompleteCheckpointError: its file is truncated.
    """
    file = adapter_file(folder)
    return None if file is None else WeightIndex(folder, ADAPTER, {file: None})
