"""Open a text file as bytes, decompressed by its suffix, up to a maximum size."""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.rows import MAX_BYTES, missing_library, printable


def _open_zst(path: Path) -> Any:
    """Open Zstandard: by the standard library from Python 3.14 on, else by pyarrow."""
    try:
        return importlib.import_module("compression.zstd").open(path, "rb")
    except ModuleNotFoundError:
        pass
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise missing_library("pyarrow", printable(path.name), "a Zstandard file") from error
    return pyarrow.input_stream(str(path), compression="zstd")


COMPRESSED: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zst, ".zstd": _open_zst,
}  # fmt: skip


def inner_suffix(path: Path) -> str:
    """The suffix in lower case; for a compressed file, the suffix before .gz and the like."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading, decompressed.

    Raises:
        ProbeError: the file is too large, or its compressed content is damaged.
        OSError: the file cannot be read.
    """
    name = printable(path.name)
    size = path.stat().st_size
    opener = COMPRESSED.get(path.suffix.lower())
    if opener is None and size <= MAX_BYTES:
        return path.open("rb")
    if size <= MAX_BYTES and opener is not None:
        try:
            with opener(path) as file:
                data = file.read(MAX_BYTES + 1)
        except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno:
                raise
            raise ProbeError(f"{name} cannot be decompressed", found=str(error)[:200],
                             hint="copy it again") from error  # fmt: skip
        if len(data) <= MAX_BYTES:
            return io.BytesIO(data)
        size = len(data)
    raise ProbeError(
        f"the probe {name} is too large",
        found=f"{size / 2**20:,.0f} MiB, at most {MAX_BYTES // 2**20}",
        hint="65,536 tokens are plenty: cut the file, a part of its lines is enough",
    )
