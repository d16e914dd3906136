"""Read Megatron's indexed data sets: tokens in a .bin, the places of documents in its .idx."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.rows import (
    READ_BYTES,
    ProbeFile,
    ReadOptions,
    Row,
    evenly_spaced,
    hash_rows,
    printable,
)

MAGIC = b"MMIDIDX\x00\x00"
# Version, token type, number of sequences, number of document borders (documents + 1).
HEAD = struct.Struct("<QBQQ")
KINDS = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
MAX_DOCUMENTS = 65_536
PART = "{name}: {read:,} of its {total:,} documents are read, evenly spread"


def is_indexed(path: Path) -> bool:
    """Whether a path is a Megatron index, or has one beside it."""
    try:
        with path.with_suffix(".idx").open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The documents of a data set; the sequences of a document are joined."""
    name = printable(path.name)
    index = np.memmap(path.with_suffix(".idx"), dtype=np.uint8, mode="r")
    start = len(MAGIC) + HEAD.size
    try:
        version, code, sequences, documents = HEAD.unpack(index[len(MAGIC) : start].tobytes())
        kind = np.dtype(KINDS[code])
        sizes = np.frombuffer(index, "<i4", sequences, start)
        pointers = np.frombuffer(index, "<i8", sequences, start + 4 * sequences)
        borders = np.frombuffer(index, "<i8", documents, start + 12 * sequences)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise _damaged(name, f"{type(error).__name__}: {error}"[:200]) from error
    count = documents - 1
    if version != 1 or count < 1 or borders[0] != 0 or borders[-1] > sequences:
        raise _damaged(name, f"version {version}, {documents:,} borders of documents")
    try:
        raw = np.memmap(path.with_suffix(".bin"), dtype=np.uint8, mode="r")
    except ValueError as error:  # an empty file
        raise _damaged(name, str(error)) from error
    wanted_documents = min(MAX_DOCUMENTS, max(1, count * READ_BYTES // max(len(raw), READ_BYTES)))
    rows = []
    for place in evenly_spaced(count, wanted_documents):
        first, last = int(borders[place]), int(borders[place + 1]) - 1
        if not 0 <= first <= last + 1 <= sequences:
            raise _damaged(name, f"document {place + 1:,}")
        if last < first:
            continue
        begin = int(pointers[first])
        end = int(pointers[last]) + int(sizes[last]) * kind.itemsize
        if not 0 <= begin <= end <= len(raw) or (end - begin) % kind.itemsize:
            raise _damaged(name, f"document {place + 1:,} at bytes {begin:,} to {end:,}")
        if end > begin:
            rows.append(Row(place + 1, input_ids=raw[begin:end].view(kind)))
    part = [PART.format(name=name, read=len(rows), total=count)]
    notes = tuple(part if wanted_documents < count else ())
    return ProbeFile(tuple(rows), hash_rows(rows), None, notes)


def _damaged(name: str, found: str) -> ProbeError:
    return ProbeError(
        f"{name} and its .idx are not of one data set that Megatron wrote", found=found,
        hint="copy both files again, the .bin and the .idx",
    )  # fmt: skip
