"""Arrays of checkpoints that no store keeps: one set in memory, the others in a temporary folder.

A run's history needs the arrays of every checkpoint, one after another. With `--no-cache`, or
where the store cannot be written, they are laid aside here until the analysis ends.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


class Aside:
    """What was laid aside last stays in memory; the next one moves it to a file.

    The folder goes with this object and its readers. Where nothing can be written, memory holds
    everything.
    """

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._last: tuple[str, Arrays] | None = None
        self._held: dict[str, Arrays] = {}

    def keep(self, key: str, arrays: Mapping[str, np.ndarray]) -> Callable[[], Arrays]:
        """Lay arrays aside; gives what reads them again.

        Args:
            key: a name of their own, which a file can have.
            arrays: by name.
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
        except Exception:  # a full disk: safetensors has an error of its own
            self._held[key] = arrays

    def _file(self, key: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="moegeo-")
        return Path(self._folder.name) / f"{key}.safetensors"
