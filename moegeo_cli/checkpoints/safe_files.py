"""Read files and folders of a checkpoint without trusting them.

Only regular files are opened, so a pipe or a device cannot block. Git LFS pointers are recognised.
"""

from __future__ import annotations

import json
import shlex
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from moegeo_cli.errors import IncompleteCheckpointError, PathError

# A Git LFS pointer, a text of about 130 bytes in place of a file, begins with this.
_POINTER, _MAX_POINTER_BYTES = b"version https://git-lfs.github.com/spec/", 1024


def parse_json(raw: bytes | str, path: Path) -> Any:
    """Parse the JSON text of a file.

    Args:
        raw: the text.
        path: the file, for errors.

    Raises:
        IncompleteCheckpointError: the text is not JSON, nested too deep, or not UTF-8.
    """
    try:
        return json.loads(raw)
    except RecursionError:
        raise damaged_error(path, "JSON nested too deep to read") from None
    except ValueError as error:  # broken JSON, broken UTF-8, an integer of thousands of digits
        raise damaged_error(path, f"not JSON: {str(error)[:200]}") from None


@contextmanager
def open_regular(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file. Pipes and devices are refused without opening them.

    Yields:
        The open file and its size in bytes.

    Raises:
        PathError: the path is absent, not a regular file, a loop of links, or unreadable.
        IncompleteCheckpointError: the file is a Git LFS pointer.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PathError(f"{path} is not a regular file")
        file = path.open("rb")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PathError(
            f"{path} cannot be read", found=reason, hint="check the path and its permissions"
        ) from None
    try:
        if status.st_size <= _MAX_POINTER_BYTES and file.read(len(_POINTER)) == _POINTER:
            raise _pointer_error(path)
        file.seek(0)
        yield file, status.st_size
    except OSError as error:
        raise PathError(f"{path} cannot be read", found=error.strerror) from None
    finally:
        file.close()


def is_there(path: Path) -> bool:
    """Whether `path` exists; False also where that cannot be checked (no permission, a loop)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def list_names(folder: Path) -> list[str]:
    """Names of a folder's entries, sorted; [] where the folder cannot be read."""
    try:
        return sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):
        return []


def read_exactly(file: BinaryIO, count: int, path: Path) -> bytes:
    """Read `count` bytes from an open file; `path` is for errors.

    Raises:
        IncompleteCheckpointError: the file ends before.
    """
    raw = file.read(count)
    if len(raw) != count:
        raise damaged_error(path, f"{len(raw)} bytes where {count} were expected")
    return raw


def _pointer_error(path: Path) -> IncompleteCheckpointError:
    return IncompleteCheckpointError(
        f"{path.name} is a Git LFS pointer, not the file itself",
        found=f"{path.stat().st_size} bytes of text that name the file by its hash",
        hint=f"get the files themselves: cd {shlex.quote(str(path.parent))} && git lfs pull",
        context={"path": str(path)},
    )


def damaged_error(path: Path, found: str) -> IncompleteCheckpointError:
    """The error for a file that is truncated or damaged; `found` says what is wrong."""
    return IncompleteCheckpointError(
        f"{path.name} is truncated or damaged",
        found=found[:500],
        hint="copy or save the checkpoint again; if it is still being written, wait",
        context={"path": str(path)},
    )
