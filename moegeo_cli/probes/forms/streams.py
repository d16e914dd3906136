"""Token ids without borders between sequences, cut into documents; mapped, never read whole.

Legend: N tokens of a file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from moegeo_cli.probes.rows import READ_BYTES, ProbeFile, Row, Wanted, hash_rows, spread_over

STRETCHES = 64  # parts of a large file
PIECE_TOKENS = 512
CUT = "{name}: documents are what ends with id {ends}"
UNCUT = "{name}: no end of a document is known in it; pieces of {step} tokens"
PART = "{name}: {read:,} of its {total:,} tokens are read, in {parts} parts evenly spread"


def rows_of_stream(tokens_N: np.ndarray, wanted: Wanted, name: str) -> ProbeFile:
    """The documents of a stream of tokens, or pieces of it where nothing says how one ends."""
    notes = []
    parts = _parts(tokens_N)
    ends = np.array(wanted.ends, dtype=np.int64)
    bounded = any(np.isin(tokens_N[a:b], ends).any() for a, b in parts) if len(ends) else False
    step = min(PIECE_TOKENS, wanted.length or PIECE_TOKENS)
    if bounded:
        shown = " or ".join(map(str, wanted.ends))
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
    """All tokens, or as many as are read of a large file."""
    total = len(tokens_N)
    if tokens_N.nbytes <= READ_BYTES:
        return [(0, total)]
    size = READ_BYTES // tokens_N.itemsize // STRETCHES
    return [(place, min(place + size, total)) for place in
            (total * s // STRETCHES for s in spread_over(STRETCHES, STRETCHES))]  # fmt: skip


def _pieces(start: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    for place in range(start, end, step):
        yield place, min(place + step, end)


def _documents(
    tokens_N: np.ndarray, start: int, end: int, ends: np.ndarray
) -> Iterator[tuple[int, int]]:
    """From behind one end up to the next, it included; none that a part's border cuts."""
    borders = start + np.flatnonzero(np.isin(tokens_N[start:end], ends)) + 1
    first = [start] if start == 0 else []
    last = [end] if end == len(tokens_N) else []
    marks = [*first, *borders.tolist(), *last]
    yield from itertools.pairwise(marks)
