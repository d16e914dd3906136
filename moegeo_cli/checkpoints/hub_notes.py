"""Read and write the note that `hub` leaves in the folder of a Hub revision.

Such a folder holds the revision's small files, and each safetensors file complete or as its header
alone. The note records the commit and the sizes of the complete files. Names and shapes can be read
from a header alone; reading values fails.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NOTE = ".moegeo-hub.json"


@dataclass(frozen=True, slots=True)
class HubNote:
    """One revision on the Hub.

    Attributes:
        repository: `ORG/NAME`.
        revision: its branch or tag.
        commit: its commit hash.
        data: weights file -> number of bytes after the header.
        contents: file -> the Hub's hash of its content.
    """

    repository: str
    revision: str
    commit: str
    data: Mapping[str, int]
    contents: Mapping[str, str]

    def write(self, folder: Path) -> None:
        """Write the note into the revision's folder."""
        known = {name: getattr(self, name) for name in self.__slots__}
        (folder / NOTE).write_text(json.dumps(known, sort_keys=True), encoding="utf-8")


def read_note(folder: Path) -> HubNote | None:
    """The note in a folder; None where it is absent or damaged."""
    try:
        known = json.loads((folder / NOTE).read_bytes())
        note = HubNote(**known)
        whole = all(type(v) is int for v in note.data.values())
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return note if whole and isinstance(note.commit, str) else None


def complete_size(path: Path, header_end: int, size: int) -> int:
    """The size of a complete safetensors file in bytes, also if only its header is present.

    Args:
        path: the file.
        header_end: byte offset of the header's end.
        size: the file's size on disk.
    """
    if size != header_end:
        return size
    note = read_note(path.parent)
    return size if note is None else header_end + note.data.get(path.name, 0)
