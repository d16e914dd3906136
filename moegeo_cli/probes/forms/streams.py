"""Cut a long stream of token ids into documents. The stream is memory-mapped, never read whole.

Legend: N tokens of a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from moegeo_cli.probes.rows import READ_BYTES, ProbeFile, ReadOptions, Row, evenly_spaced, hash_rows

STRETCHES = 64  # number of parts that are read of a large file
PIECE_TOKENS = 512
CUT = "{name}: documents end at token id {ends}"
UNCUT = "{name}: no end-of-document id was found; cut into pieces of {step} tokens"
PART = "{name}: {read:,} of its {total:,} tokens are read, in {parts} parts evenly spread"


def rows_of_stream(tokens_N: np.ndarray, options: ReadOptions, name: str) -> ProbeFile:
    """The documents of a stream of tokens, or pieces of equal length if no end id occurs in it."""
    notes = []
    parts = _parts(tokens_N)
    ends = np.array(options.ends, dtype=np.int64)
    bounded = any(np.isin(tokens_N[a:b], ends).any() for a, b in parts) if len(ends) else False
    step = min(PIECE_TOKENS, options.length or PIECE_TOKENS)
    if bounded:
        shown = " or ".join(map(str, options.ends))
        notes.append(CUT.format(name=name, ends=shown))
    else:
        notes.append(UNCUT.format(name=name, step=step))
    if len(parts) > 1:
        read = sum(b - a for a, b in parts)
        notes.append(PART.format(name=name, read=read, total=len(tokens_N), parts=len(parts)))
    rows = [
        Row(a + 1, input_ids=tokens_N[a:b])
        for start, end in parts
        for a, b in (
            _documents(tokens_N, start, end, ends) if bounded else _pieces(start, end, step)
        )
        if b > a
    ]
    return ProbeFile(tuple(rows), hash_rows(rows), None, tuple(notes))


def _parts(tokens_N: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of the parts that are read: everything, or evenly spaced parts."""
    total = len(tokens_N)
    if tokens_N.nbytes <= READ_BYTES:
        return [(0, total)]
    size = READ_BYTES // tokens_N.itemsize // STRETCHES
    return [(place, min(place + size, total)) for place in
            (total * s // STRETCHES for s in evenly_spaced(STRETCHES, STRETCHES))]  # fmt: skip


def _pieces(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    for place in range(start, end, step):
        yield place, min(place + step, end)


def _documents(
    tokens_N: np.ndarray, start: int, end: int, ends: np.ndarray
) -> Iterator[tuple[int, int]]:
    """(start, end) of each document, end id included. A document that a part cuts is skipped."""
    borders = start + np.flatnonzero(np.isin(tokens_N[start:end], ends)) + 1
    first = [start] if start == 0 else []
    last = [end] if end == len(tokens_N) else []
    marks = [*first, *borders.tolist(), *last]
    yield from itertools.pairwise(marks)
