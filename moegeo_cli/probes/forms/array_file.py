"""NumPy's .npy: a table of token ids, one sequence a row, or a stream of them; mapped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms import token_file
from moegeo_cli.probes.forms.streams import rows_of_stream
from moegeo_cli.probes.rows import (
    READ_BYTES,
    ProbeFile,
    Row,
    Wanted,
    hash_rows,
    printable,
    spread_over,
)

MAGIC = b"\x93NUMPY"
PART = "{name}: {read:,} of its {total:,} rows are read, evenly spread"


def read(path: Path, wanted: Wanted) -> ProbeFile:
    """The sequences of an array; a .npy without NumPy's own head is a raw token file (OLMo's)."""
    name = printable(path.name)
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            return token_file.read(path, wanted)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError) as error:
        raise ProbeError(f"{name} cannot be read as an array of numbers", found=str(error)[:200],
                         hint="write it with numpy.save") from error  # fmt: skip
    if array.dtype.kind not in "iu" or array.ndim not in (1, 2):
        raise ProbeError(
            f"{name} is no table and no stream of token ids",
            found=f"{array.dtype} {array.shape}",
            hint="integers, one or two axes: tokens, or sequences and tokens",
        )
    if array.ndim == 1:
        return rows_of_stream(array, wanted, name)
    count = max(1, len(array) * READ_BYTES // max(array.nbytes, READ_BYTES))
    rows = [Row(p + 1, input_ids=array[p]) for p in spread_over(len(array), count)
            if array.shape[1]]  # fmt: skip
    part = (PART.format(name=name, read=len(rows), total=len(array)),)
    return ProbeFile(tuple(rows), hash_rows(rows), None, part if count < len(array) else ())
