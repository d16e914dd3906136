"""Stores the sums of a checkpoint, so that each file is read once.

A checkpoint counts as unchanged while its files have the same names, sizes and times of change:
then none of its weights are read again. A changed checkpoint is read again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.hub_notes import read_note
from moegeo_cli.checkpoints.step_names import parse_step
from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from moegeo_cli.commands.check.layer_sums import STATISTICS
from moegeo_cli.records import from_dict, to_dict
from moegeo_cli.store.cache import Store, entry_key

# Raise it when the meaning of stored sums changes: checkpoints are then read again.
VERSION = 5


@dataclass(frozen=True, slots=True)
class StoredSums:
    """A checkpoint's sums, and its fingerprint when they were computed."""

    fingerprint: str
    sums: CheckpointSums


def sums_key(
    checkpoint: Checkpoint, mode: str, quick: bool, model: Mapping[str, Any] | None
) -> str:
    """The store key of a checkpoint's sums.

    Args:
        checkpoint: a complete checkpoint.
        mode: "sampled" to recognise the checkpoint by names, sizes and times of its files; "full"
            to recognise it by every byte.
        quick: whether only routers, biases and vectors are read.
        model: the identity of a user's own model; None for models of transformers.

    Raises:
        MoegeoError: see `Checkpoint.fingerprint`.
    """
    by_fingerprint = mode == "full" or read_note(checkpoint.path) is not None
    identity: Any = checkpoint.fingerprint(mode) if by_fingerprint else list(_files(checkpoint))
    parts = {
        "check": VERSION,
        "checkpoint": identity,
        "quick": quick,
        "statistics": [[s.name, s.version] for s in STATISTICS],
        **({"model": dict(model)} if model else {}),
    }
    return f"check-{entry_key(parts)}"


def load_sums(store: Store, key: str) -> StoredSums | None:
    """The stored sums; None if there are none, or if they are damaged."""
    try:
        return from_dict(StoredSums, store.load_json(key))
    except ValueError:
        return None


def keep_sums(store: Store, key: str, kept: StoredSums) -> None:
    """Store a checkpoint's sums."""
    store.save_json(key, to_dict(kept))


def _files(checkpoint: Checkpoint) -> Iterator[list[Any]]:
    """Name, size and times of each file of a checkpoint, with its config and base model."""
    if checkpoint.path.is_file():
        yield _size_and_times(checkpoint.path.name, checkpoint.path)
    else:
        yield from _walk(checkpoint.path, "")
    if checkpoint.config_folder != checkpoint.path:
        yield _size_and_times("config", checkpoint.config_folder / "config.json")
    if checkpoint.layout == ADAPTER:
        for file in checkpoint.stored.files:
            yield _size_and_times(f"base/{file.name}", file)


def _walk(folder: Path, above: str) -> Iterator[list[Any]]:
    """Files of a checkpoint, sorted by name, without hidden files and other checkpoints."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        name = f"{above}{entry.name}"
        if not entry.is_dir():
            yield _size_and_times(name, Path(entry.path))
        elif parse_step(entry.name) is None and not (Path(entry.path) / "config.json").exists():
            yield from _walk(Path(entry.path), f"{name}/")


def _size_and_times(name: str, path: Path) -> list[Any]:
    """Name, size, modification time and change time of a file; the name alone for a broken link.

    The change time (ctime) changes with every write, even if a tool resets mtime.
    """
    try:
        found = path.stat()
    except OSError:  # a broken link
        return [name]
    return [name, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
