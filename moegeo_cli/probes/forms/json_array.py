"""Read a JSON array of records; a `.json` file that is not an array is read as JSON Lines."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.json_lines import read_lines
from moegeo_cli.probes.forms.opening import open_bytes
from moegeo_cli.probes.records import rows_of
from moegeo_cli.probes.rows import FORMATS, ProbeFile, ReadOptions, Row, printable


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The rows of a JSON array, or of JSON Lines if the file does not begin with `[`."""
    name = printable(path.name)
    with open_bytes(path) as file:
        start = file.read(4096)
        file.seek(0)
        if start.lstrip()[:1] != b"[":
            return read_lines(file, name, options)
        data = file.read()
    try:
        records = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProbeError(
            f"{name} is not JSON", found=str(error)[:200], hint=f"give {FORMATS}"
        ) from error
    rows: list[Row] = []
    for number, record in enumerate(records, 1):
        rows += rows_of(record, number, f"entry {number} of {name}", options)
    return ProbeFile(tuple(rows), hashlib.sha256(data).hexdigest())
