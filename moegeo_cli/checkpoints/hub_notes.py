"""What is known of a revision of the Hub whose weights are, or are not, on this machine.

A revision's folder holds its small files, and of each safetensors file either all of it or its
header alone. The note beside them tells which commit it is and how long the files are. A file that
is its header alone describes all tensors and holds none: reading one of them fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NOTE = ".moegeo-hub.json"


@dataclass(frozen=True, slots=True)
class HubNote:
    """One revision: its repository, its name, its commit, and the bytes of each weights file.

    `data` are the bytes behind the header. `contents` is a hash of each file's content, as the Hub
    has it.
    """

    repository: str
    revision: str
    commit: str
    data: Mapping[str, int]
    contents: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Put the note into the revision's folder."""
        known = {name: getattr(self, name) for name in self.__slots__}
        (folder / NOTE).write_text(json.dumps(known, sort_keys=True), encoding="utf-8")


def note_of(folder: Path) -> HubNote | None:
    """The note in a folder; None where there is none that is whole."""
    try:
        known = json.loads((folder / NOTE).read_bytes())
        note = HubNote(**known)
        whole = all(type(v) is int for v in note.data.values())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return note if whole and isinstance(note.commit, str) else None


def described_size(path: Path, header_end: int, size: int) -> int:
    """The size that a safetensors file has with its data: its own, unless it is a header alone."""
    if size != header_end:
        return size
    note = note_of(path.parent)
    return size if note is None else header_end + note.data.get(path.name, 0)
