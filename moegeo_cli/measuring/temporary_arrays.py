"""Keep the arrays of checkpoints during an analysis if the store does not.

The history of a run needs the arrays of every checkpoint, one after another. With `--no-cache`, or
if the store cannot be written, the newest arrays stay in memory and the others go to a temporary
folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class TemporaryArrays:
    """Arrays by key: the last ones in memory, earlier ones in files of a temporary folder.

    The folder is deleted with this object and its readers. Arrays that cannot be written stay in
    memory.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._last: tuple[str, Arrays] | None = None
        self._held: dict[str, Arrays] = {}

    def keep(self, key: str, arrays: Mapping[str, np.ndarray]) -> Callable[[], Arrays]:
        """Keep arrays.

        Args:
            key: a unique name, valid as a file name.
            arrays: arrays by name.

        Returns:
            A function that returns the arrays.
        """
        if self._last is not None and self._last[0] != key:
            self._move(*self._last)
        self._last = (key, dict(arrays))
        return lambda: self._read(key)

    def _read(self, key: str) -> Arrays:
        from safetensors.numpy import load_file

        if self._last is not None and self._last[0] == key:
            return self._last[1]
        return self._held[key] if key in self._held else load_file(self._file(key))

    def _move(self, key: str, arrays: Arrays) -> None:
        from safetensors.numpy import save_file

        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        try:
            save_file(whole, self._file(key))
        except Exception:  # for example a full disk; safetensors raises its own error type
            self._held[key] = arrays

    def _file(self, key: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="moegeo-")
        return Path(self._folder.name) / f"{key}.safetensors"
