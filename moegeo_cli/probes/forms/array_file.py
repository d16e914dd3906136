"""Read NumPy's .npy: a table of token ids (one sequence per row) or a stream of token ids.

The file is memory-mapped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms import token_file
from moegeo_cli.probes.forms.streams import rows_of_stream
from moegeo_cli.probes.rows import (
    READ_BYTES,
    ProbeFile,
    ReadOptions,
    Row,
    evenly_spaced,
    hash_rows,
    printable,
)

MAGIC = b"\x93NUMPY"
PART = "{name}: {read:,} of its {total:,} rows are read, evenly spread"


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The sequences of an array. A .npy without NumPy's header is a raw token file (as OLMo's)."""
    name = printable(path.name)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return token_file.read(path, options)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise ProbeError(f"{name} cannot be read as an array of numbers", found=str(error)[:200],
                         hint="write it with numpy.save") from error  # fmt: skip
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise ProbeError(
            f"{name} is neither a table nor a stream of token ids",
            found=f"{array.dtype} {array.shape}",
            hint="give integers of shape (tokens,) or (sequences, tokens)",
        )
    if array.ndim == 1:
        return rows_of_stream(array, options, name)
    count = max(1, len(array) * READ_BYTES // max(array.nbytes, READ_BYTES))
    rows = [Row(p + 1, input_ids=array[p]) for p in evenly_spaced(len(array), count)
            if array.shape[1]]  # fmt: skip
    part = (PART.format(name=name, read=len(rows), total=len(array)),)
    return ProbeFile(tuple(rows), hash_rows(rows), None, part if count < len(array) else ())
