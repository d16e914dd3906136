"""The index of a sharded checkpoint: which file holds which tensor, and nothing else."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from moegeo_cli.checkpoints.headers import (
    MAX_HEADER_BYTES,
    is_there,
    open_regular,
    parse_json,
    read_exactly,
)
from moegeo_cli.errors import IncompleteCheckpointError, UnsafeFileError


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
        check_shard_name(path, shard)
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
    return parse_json(read_whole(path, limit), path)


def read_whole(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        PathError: absent or unreadable.
        IncompleteCheckpointError: longer than `limit`.
    """
    with open_regular(path) as (file, size):
        if size > limit:
            raise IncompleteCheckpointError(f"{path.name} has {size} bytes, too long to be right")
        return read_exactly(file, size, path)


def check_shard_name(index: Path, shard: str) -> None:
    """Refuse a shard name that leads out of the index's folder."""
    parts = PurePosixPath(shard.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in shard or "\0" in shard or not shard:
        raise UnsafeFileError(
            f"{index.name} points outside the checkpoint's folder, and is refused",
            found=repr(shard)[:200],
            hint="get the checkpoint from a source that you trust",
        )
