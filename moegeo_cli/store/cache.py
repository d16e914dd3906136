"""The store: one entry per measured checkpoint, with its record and its arrays.

An entry is a folder named by its key. It holds `measurements.safetensors` and `record.json`; the
record contains the hashes of both. If either file is missing, does not match its hash or has
another version, the entry is ignored and the checkpoint is measured again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import MoegeoError, OutputError
from moegeo_cli.records import CheckpointRecord, from_dict, to_dict
from moegeo_cli.store.files import write_atomic

FOLDER = ".moegeo"
# Increase this if the meaning of a stored measurement changes: older entries are then ignored.
STORE_VERSION = 7


def entry_key(parts: Mapping[str, Any]) -> str:
    """Hash of everything that a measurement depends on: fingerprint, probe, settings, versions."""
    text = json.dumps({"store": STORE_VERSION, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """A folder of entries.

    Args:
        folder: the folder, created on the first write; None to store nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.problem: str | None = None  # why the store could not be written, for the report

    def load(self, key: str) -> tuple[CheckpointRecord, dict[str, np.ndarray]] | None:
        """An entry's record and measurements.

        None if either is missing or does not match its hash.
        """
        record = self._record(key)
        data = self._measurements(key, record)
        if record is None or data is None:
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            return record, load(data)
        except (SafetensorError, ValueError, KeyError):
            return None  # a damaged entry is measured again

    def record(self, key: str) -> CheckpointRecord | None:
        """An entry's record. None if its measurements are missing or do not match their hash."""
        record = self._record(key)
        return None if self._measurements(key, record) is None else record

    def _measurements(self, key: str, record: CheckpointRecord | None) -> bytes | None:
        if record is None or self.folder is None:
            return None
        try:
            data = (self.folder / key / "measurements.safetensors").read_bytes()
        except OSError:
            return None
        return data if hashlib.sha256(data).hexdigest() == record.measurements else None

    def _record(self, key: str) -> CheckpointRecord | None:
        if self.folder is None:
            return None
        try:
            text = (self.folder / key / "record.json").read_text()
            return from_dict(CheckpointRecord, _unseal(text))
        except (OSError, ValueError, RecursionError):
            return None

    def save(
        self, key: str, record: CheckpointRecord, arrays: Mapping[str, np.ndarray]
    ) -> CheckpointRecord:
        """Store an entry. If the store cannot be written, `problem` says why; no error is raised.

        Returns:
            The record with the hash of its measurements.
        """
        from safetensors.numpy import save

        data = save({name: np.ascontiguousarray(a) for name, a in sorted(arrays.items())})
        record = dataclasses.replace(record, measurements=hashlib.sha256(data).hexdigest())
        if self.folder is not None:
            try:
                write_atomic(self.folder / key / "measurements.safetensors", data)
                write_atomic(self.folder / key / "record.json", _seal(to_dict(record)))
            except OutputError as error:
                self.problem = str(error.found)
        return record

    def load_json(self, key: str) -> Any:
        """A stored JSON document; None if it is missing or does not match its hash."""
        if self.folder is None:
            return None
        try:
            return _unseal((self.folder / f"{key}.json").read_text())
        except (OSError, ValueError, RecursionError):
            return None

    def list_json(self, prefix: str) -> list[str]:
        """Names of stored JSON documents with this prefix, including damaged ones, oldest first."""
        if self.folder is None:
            return []
        try:
            files = [(f.stat().st_mtime_ns, f.stem) for f in self.folder.glob(f"{prefix}*.json")]
        except OSError:
            return []
        return [name for _, name in sorted(files)]

    def save_json(self, key: str, document: Any) -> None:
        """Store a JSON document that was derived from entries; failures go to `problem`."""
        if self.folder is None:
            return
        try:
            write_atomic(self.folder / f"{key}.json", _seal(document))
        except MoegeoError as error:
            self.problem = str(error.found)


def _seal(document: Any) -> str:
    """A document with the hash of its text, so that any change of the file is noticed."""
    text = json.dumps(document, allow_nan=False)
    return f'{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}", "content": {text}}}'


def _unseal(text: str) -> Any:
    """The document in a text that `_seal` made.

    Raises:
        ValueError: the text has no hash, or does not match it.
    """
    head, found, content = text.partition('", "content": ')
    stated = head.removeprefix('{"sha256": "')
    if not found or hashlib.sha256(content[:-1].encode()).hexdigest() != stated:
        raise ValueError("not as it was written")
    return json.loads(content[:-1])
