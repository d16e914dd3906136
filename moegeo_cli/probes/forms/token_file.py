"""Raw token files: uint16 or uint32, little-endian, and nothing else; also llm.c's, with a head."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.streams import rows_of_stream
from moegeo_cli.probes.rows import ProbeFile, Wanted, printable

# The first number of llm.c's data files, and the type of token behind their 1,024 bytes of head.
LLM_C = {20240520: "<u2", 20240801: "<u4"}
LLM_C_HEAD = 1024
LOOKED_AT = 65_536  # tokens


def read(path: Path, wanted: Wanted) -> ProbeFile:
    """The documents of a raw token file."""
    name = printable(path.name)
    size = path.stat().st_size
    if not size:
        return ProbeFile((), "")
    raw = np.memmap(path, dtype=np.uint8, mode="r")
    head = int(raw[:4].view("<u4")[0]) if size >= LLM_C_HEAD else 0
    start = LLM_C_HEAD if head in LLM_C else 0
    kind = LLM_C.get(head) or _kind(raw, wanted.vocab_size)
    if (size - start) % np.dtype(kind).itemsize:
        raise ProbeError(
            f"{name} is no file of {np.dtype(kind).name} tokens", found=f"{size:,} bytes",
            hint="uint16 up to 65,536 ids, else uint32; a text file is named .txt",
        )  # fmt: skip
    return rows_of_stream(raw[start:].view(kind), wanted, name)


def _kind(raw: np.ndarray, vocab_size: int | None) -> str:
    """uint32 where a vocabulary needs it, or where all second halves are 0, not all first."""
    if vocab_size is not None and vocab_size > 2**16:
        return "<u4"
    if len(raw) % 4:
        return "<u2"
    words = raw[: min(len(raw), 4 * LOOKED_AT)].view("<u2")
    return "<u4" if not words[1::2].any() and words[::2].any() else "<u2"
