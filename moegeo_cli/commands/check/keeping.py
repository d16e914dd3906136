"""Stores what was read of a checkpoint's files, so that each file is read once.

A checkpoint counts as the same while its files have the same names, sizes and times of change:
then not a byte of its weights is read again. Anything else is read anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.checkpoints.hub_notes import note_of
from moegeo_cli.checkpoints.step_names import parse_step
from moegeo_cli.commands.check.checkpoint_sums import CheckpointSums
from moegeo_cli.commands.check.layer_sums import STATISTICS
from moegeo_cli.records import from_dict, to_dict
from moegeo_cli.store.cache import Store, entry_key

# Raised whenever the meaning of what is kept changes: older entries are read anew.
VERSION = 5


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint's sums, and its fingerprint when they were made."""

    fingerprint: str
    sums: CheckpointSums


def key_of(checkpoint: Checkpoint, mode: str, quick: bool, model: Mapping[str, Any] | None) -> str:
    """Where a checkpoint's sums are kept.

    Args:
        checkpoint: a complete checkpoint.
        mode: "sampled": told by its files' names, sizes and times; "full": by every byte of them.
        quick: whether routers, biases and vectors alone are read.
        model: the identity of a user's own model; None for transformers'.

    Raises: what `fingerprint` raises.
    """
    told = mode == "full" or note_of(checkpoint.path) is not None
    who: Any = checkpoint.fingerprint(mode) if told else list(_files(checkpoint))
    parts = {
        "check": VERSION,
        "checkpoint": who,
        "quick": quick,
        "statistics": [[s.name, s.version] for s in STATISTICS],
        **({"model": dict(model)} if model else {}),
    }
    return f"check-{entry_key(parts)}"


def load_sums(store: Store, key: str) -> Kept | None:
    """The stored sums; None if there are none, or if they are damaged."""
    try:
        return from_dict(Kept, store.load_json(key))
    except ValueError:
        return None


def keep_sums(store: Store, key: str, kept: Kept) -> None:
    """Store a checkpoint's sums."""
    store.save_json(key, to_dict(kept))


def _files(checkpoint: Checkpoint) -> Iterator[list[Any]]:
    """Name, size and times of every file of a checkpoint, and of its config.json elsewhere."""
    if checkpoint.path.is_file():
        yield _signs(checkpoint.path.name, checkpoint.path)
    else:
        yield from _walk(checkpoint.path, "")
    if checkpoint.config_folder != checkpoint.path:
        yield _signs("config", checkpoint.config_folder / "config.json")
    if checkpoint.layout == ADAPTER:
        for file in checkpoint.stored.files:
            yield _signs(f"base/{file.name}", file)


def _walk(folder: Path, above: str) -> Iterator[list[Any]]:
    """Files of a checkpoint, by name; what moegeo keeps and other checkpoints are not of it."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        name = f"{above}{entry.name}"
        if not entry.is_dir():
            yield _signs(name, Path(entry.path))
        elif parse_step(entry.name) is None and not (Path(entry.path) / "config.json").exists():
            yield from _walk(Path(entry.path), f"{name}/")


def _signs(name: str, path: Path) -> list[Any]:
    """Modification and change times of a file.

    Ctime changes with every write, even if a tool resets mtime.
    """
    try:
        found = path.stat()
    except OSError:  # a link to nothing
        return [name]
    return [name, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
