"""Read raw token files: little-endian uint16 or uint32, without a header or with llm.c's."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.streams import rows_of_stream
from moegeo_cli.probes.rows import ProbeFile, ReadOptions, printable

# The first number of llm.c's data files, and the token type after their header of 1,024 bytes.
LLM_C = {20240520: "<u2", 20240801: "<u4"}
LLM_C_HEAD = 1024
LOOKED_AT = 65_536  # tokens


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The documents of a raw token file."""
    name = printable(path.name)
    size = path.stat().st_size
    if not size:
        return ProbeFile((), "")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    head = int(raw[:4].view("<u4")[0]) if size >= LLM_C_HEAD else 0
    start = LLM_C_HEAD if head in LLM_C else 0
    kind = LLM_C.get(head) or _kind(raw, options.vocab_size)
    if (size - start) % np.dtype(kind).itemsize:
        raise ProbeError(
            f"{name} is not a file of {np.dtype(kind).name} tokens", found=f"{size:,} bytes",
            hint="use uint16 for up to 65,536 ids, else uint32; name a text file .txt",
        )  # fmt: skip
    return rows_of_stream(raw[start:].view(kind), options, name)


def _kind(raw: np.ndarray, vocab_size: int | None) -> str:
    """The token type: uint32 if the vocabulary needs it, or if all upper halves are 0."""
    if vocab_size is not None and vocab_size > 2**16:
        return "<u4"
    if len(raw) % 4:
        return "<u2"
    words = raw[: min(len(raw), 4 * LOOKED_AT)].view("<u2")
    return "<u4" if not words[1::2].any() and words[::2].any() else "<u2"
