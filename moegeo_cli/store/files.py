"""Write files atomically: after a kill, the old or the new file is there, never half of one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from moegeo_cli.errors import OutputError


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    write_atomic_by(path, lambda temporary: temporary.write_bytes(data))


def write_atomic_by(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path in the same folder, flush the file to disk, rename it.

    Raises:
        OutputError: the folder or the file cannot be written.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )
        os.close(handle)
        write(Path(temporary))
        with Path(temporary).open("rb") as file:
            os.fsync(file.fileno())
        Path(temporary).chmod(_mode(path))
        Path(temporary).replace(path)
    except (OSError, OutputError) as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{path} cannot be written",
            found=error.strerror or str(error),
            hint="choose another --output, or free some space there",
        ) from error


def check_writable(path: Path) -> None:
    """Check, before the work, that a file can be written. Devices and pipes are accepted.

    Raises:
        OutputError: the file cannot be written.
    """
    target = path.resolve()
    if target.is_dir():
        raise OutputError(f"{path} is a folder", hint="name a file in it")
    if target.exists() and not target.is_file():
        return
    folder = next(parent for parent in target.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written",
            found=error.strerror or str(error),
            hint="choose another place",
        ) from error


def _mode(path: Path) -> int:
    """Permissions of the file that is replaced; for a new file, the default by the umask."""
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        mask = os.umask(0o077)  # reading the umask means setting it; it is restored at once
        os.umask(mask)
        return 0o666 & ~mask
