"""Recognise the layout of a checkpoint's folder and open its weights as a `WeightIndex`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER, adapter_file, has_adapter
from moegeo_cli.checkpoints.distributed import DistributedWeights
from moegeo_cli.checkpoints.gguf_file import GGUFWeights
from moegeo_cli.checkpoints.indexes import read_index
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, GGUF, find_distributed, find_gguf
from moegeo_cli.checkpoints.safe_files import is_there, list_names
from moegeo_cli.checkpoints.two_saves import refuse_two_saves
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
    """The layout of a folder's weights, by file names alone; None where there are no weights."""
    for name, layout in LAYOUT_FILES.items():
        if is_there(folder / name):
            return layout
    if find_distributed(folder) is not None:
        return DISTRIBUTED
    if find_gguf(folder) is not None:
        return GGUF
    return ADAPTER if has_adapter(folder) else None


def open_weights(folder: Path, config: Mapping[str, Any] | None = None) -> WeightIndex:
    """Open a checkpoint's weights. Of safetensors files only the headers are read.

    Args:
        folder: the checkpoint's folder, or a single file that holds a state dict.
        config: the parsed config.json, where there is one. Names of other frameworks are
            translated with it.

    Returns:
        The tensors in the folder's files. For an adapter without its base model, the adapter's.

    Raises:
        NoCheckpointError: the folder holds no weights.
        IncompleteCheckpointError: a file is truncated, or a shard or the index is missing.
        UnsafeFileError: an index points outside the folder.
        UnsupportedLayoutError: the folder holds two different saves of its weights.
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
                hint="copy the index file as well; it is written after the shards",
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
    refuse_two_saves(folder)
    file = folder / next(name for name, value in LAYOUT_FILES.items() if value == layout)
    if layout.endswith("sharded"):
        return WeightIndex(folder, layout, read_index(file))
    return WeightIndex(folder, layout, {file: None})


def open_adapter(folder: Path) -> WeightIndex | None:
    """Open the tensors of the adapter in a folder; None where there is no adapter.

    Raises:
        IncompleteCheckpointError: the adapter's file is truncated.
    """
    file = adapter_file(folder)
    return None if file is None else WeightIndex(folder, ADAPTER, {file: None})
