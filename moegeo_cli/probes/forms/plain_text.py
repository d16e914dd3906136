"""Read plain text and cut it into passages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.opening import open_bytes
from moegeo_cli.probes.rows import FORMATS, ProbeFile, ReadOptions, Row, printable

PASSAGE_CHARACTERS = 1000


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """Passages of a UTF-8 text, cut between paragraphs; a long paragraph is cut between words.

    Raises:
        ProbeError: not UTF-8 text.
        OSError: the file cannot be read.
    """
    name = printable(path.name)
    with open_bytes(path) as file:
        data = file.read()
    if b"\0" in data:
        raise ProbeError(
            f"{name} is not UTF-8 text",
            found=f"a NUL at byte {data.index(0):,}: another encoding, or no text",
            hint=f"give {FORMATS}",
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProbeError(
            f"{name} is not UTF-8 text",
            found=f"byte {error.start:,} in line {data.count(10, 0, error.start) + 1:,}",
            hint=f"give {FORMATS}",
        ) from error
    rows = tuple(_cut_text(text.replace("\r\n", "\n")))
    return ProbeFile(rows, hashlib.sha256(data).hexdigest())


def _cut_text(text: str) -> Iterator[Row]:
    held: list[str] = []
    size, line, start = 0, 1, 1
    for paragraph in text.split("\n\n"):
        if held and size + len(paragraph) > PASSAGE_CHARACTERS:
            yield from _cut_passage("\n\n".join(held), start)
            held, size, start = [], 0, line
        held.append(paragraph)
        size += len(paragraph) + 2
        line += paragraph.count("\n") + 2
    yield from _cut_passage("\n\n".join(held), start)


def _cut_passage(passage: str, line: int) -> Iterator[Row]:
    """One passage, or several if a single paragraph is longer than the limit."""
    start = 0
    while start < len(passage):
        end = start + PASSAGE_CHARACTERS
        if end < len(passage):
            space = max(passage.rfind(" ", start, end), passage.rfind("\n", start, end))
            end = space + 1 if space > start else end
        piece = passage[start:end].strip("\n")
        if piece.strip():
            yield Row(line, text=piece)
        line += passage.count("\n", start, end)
        start = end
