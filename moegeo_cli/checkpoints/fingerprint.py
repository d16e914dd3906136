"""Hash a checkpoint, so that the store can tell whether a stored measurement still belongs to it.

`sampled` hashes config.json, the size and header of every file, every router tensor whole, and 64
blocks of 64 KiB per file at offsets derived from the file's size. It misses a change of expert or
attention weights that keeps all shapes and touches none of the blocks. `full` hashes every byte.
Neither covers optimizer states, tokenizers and logs. For a revision on the Hub, both use the Hub's
own hashes of its files.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from moegeo_cli.checkpoints.effective import EffectiveWeights, files_beside
from moegeo_cli.checkpoints.hub_notes import read_note
from moegeo_cli.checkpoints.routers import find_router_tensors
from moegeo_cli.checkpoints.safe_files import open_regular, read_exactly
from moegeo_cli.checkpoints.weights import WeightIndex
from moegeo_cli.errors import UsageError

# Change it when the recipe changes: stored measurements then no longer match.
RECIPE = "moegeo-fingerprint-1"
MODES = ("sampled", "full")
BLOCKS = 64
BLOCK_BYTES = 64 * 1024
_CHUNK_BYTES = 4 * 1024 * 1024


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...


def fingerprint(path: Path, index: EffectiveWeights, config: bytes | None, mode: str) -> str:
    """Hash a checkpoint's config and weights; see `Checkpoint.fingerprint`.

    Args:
        path: the checkpoint's folder.
        index: its weights, and those of the model within, if it wraps one.
        config: the bytes of config.json; None without one.
        mode: "sampled" or "full"; the mode is hashed too, so the two never give the same hash.

    Returns:
        64 hexadecimal digits.

    Raises:
        UsageError: an unknown mode.
        PathError: a file is unreadable.
        IncompleteCheckpointError: a file is truncated.
    """
    if mode not in MODES:
        raise UsageError(f"no fingerprint mode {mode!r}", hint=f"use one of {', '.join(MODES)}")
    digest = hashlib.sha256()
    _update(digest, RECIPE.encode(), mode.encode(), index.layout.encode())
    if config is not None:
        digest.update(len(config).to_bytes(8, "little"))
        digest.update(config)
    note = read_note(path)
    if note is not None:  # the same hash whether or not the weights are downloaded
        _update(digest, *(f"{n}={c}".encode() for n, c in sorted(note.contents.items())))
        return digest.hexdigest()
    for file in index.files:
        _update(digest, file.name.encode("utf-8", "surrogateescape"))
        if mode == "full":
            _update_whole(digest, file)
        else:
            _update_sampled(digest, index, file)
    for file in files_beside(index):
        _update(digest, file.name.encode())
        _update_whole(digest, file)
    if not index.is_plain:
        # the record describes an adapter only after `resolve`: leave it out
        _update(digest, repr(replace(index.record, adapter=None)).encode())
    if mode == "sampled":
        _update_routers(digest, index)
    return digest.hexdigest()


def _update(digest: _Hash, *parts: bytes) -> None:
    """Hash parts with their lengths: a byte moved from one part to the next changes the hash."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _update_whole(digest: _Hash, path: Path) -> None:
    """Hash a file's size and every byte of it."""
    with open_regular(path) as (file, size):
        digest.update(size.to_bytes(8, "little"))
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)


def _update_sampled(digest: _Hash, index: WeightIndex, path: Path) -> None:
    """Hash a file's size, its header where it has one, and blocks at fixed offsets."""
    header = index.header(path)
    with open_regular(path) as (file, size):
        digest.update(size.to_bytes(8, "little"))
        start = header.data_start if header else 0
        _update(digest, read_exactly(file, start, path))
        for offset in _block_offsets(start, size):
            file.seek(offset)
            digest.update(file.read(BLOCK_BYTES))


def _block_offsets(start: int, size: int) -> list[int]:
    """Offsets of the sampled blocks. They cover every byte of a file that is small enough."""
    if size - start <= BLOCKS * BLOCK_BYTES:
        return list(range(start, size, BLOCK_BYTES))
    span = size - start - BLOCK_BYTES + 1
    places = set()
    for number in range(BLOCKS):  # sha256 of a counter: the same offsets on every machine
        seed = hashlib.sha256(f"{RECIPE}:{size}:{number}".encode()).digest()
        places.add(start + int.from_bytes(seed, "little") % span)
    return sorted(places)


def _update_routers(digest: _Hash, index: WeightIndex) -> None:
    """Hash every router's weight and biases whole."""
    for router in find_router_tensors(index):
        for name in (router.weight, router.bias, router.selection_bias):
            if name is not None:
                _update(digest, name.encode(), index.read_bytes(name))
