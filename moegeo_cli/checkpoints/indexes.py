"""Read the index of a sharded checkpoint: which file holds which tensor.

`opening` reads an index before any shard. File names in it are checked, since an index may come
from an untrusted source.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from moegeo_cli.checkpoints.headers import MAX_HEADER_BYTES
from moegeo_cli.checkpoints.safe_files import is_there, open_regular, parse_json, read_exactly
from moegeo_cli.errors import IncompleteCheckpointError, UnsafeFileError


def read_index(path: Path) -> dict[Path, tuple[str, ...]]:
    """Read a shard index.

    Returns:
        Shard file -> names of the tensors that it should hold.

    Raises:
        IncompleteCheckpointError: the file is not an index, or shards are missing.
        UnsafeFileError: a shard lies outside the checkpoint's folder.
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
    """Read and parse a JSON file of at most `limit` bytes.

    Raises:
        PathError: the file is absent or unreadable.
        IncompleteCheckpointError: the file is not JSON, or longer than `limit`.
    """
    return parse_json(read_whole(path, limit), path)


def read_whole(path: Path, limit: int) -> bytes:
    """Read a file of at most `limit` bytes.

    Raises:
        PathError: the file is absent or unreadable.
        IncompleteCheckpointError: the file is longer than `limit`.
    """
    with open_regular(path) as (file, size):
        if size > limit:
            raise IncompleteCheckpointError(f"{path.name} has {size} bytes, too long to be right")
        return read_exactly(file, size, path)


def check_shard_name(index: Path, shard: str) -> None:
    """Check that a shard name stays within the index's folder.

    Raises:
        UnsafeFileError: it leads out of the folder.
    """
    parts = PurePosixPath(shard.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in shard or "\0" in shard or not shard:
        raise UnsafeFileError(
            f"{index.name} points outside the checkpoint's folder, and is refused",
            found=repr(shard)[:200],
            hint="get the checkpoint from a source that you trust",
        )
