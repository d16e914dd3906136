"""Read JSON Lines: one record per line, after an optional header of moegeo's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import IO, Any

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.forms.opening import open_bytes
from moegeo_cli.probes.records import rows_of
from moegeo_cli.probes.rows import (
    FORMATS,
    HEADER_KEY,
    HEADER_VERSION,
    Header,
    ProbeFile,
    ReadOptions,
    Row,
    printable,
)

MAX_LINE_BYTES = 16 * 2**20  # parsed JSON takes up to forty times as much memory


def read(path: Path, options: ReadOptions) -> ProbeFile:
    """The rows of a file; a line that is not understood is an error."""
    with open_bytes(path) as file:
        return read_lines(file, printable(path.name), options)


def read_lines(file: IO[bytes], name: str, options: ReadOptions) -> ProbeFile:
    """The rows of an open file; `name` is used in errors."""
    rows: list[Row] = []
    header: Header | None = None
    content = hashlib.sha256()
    for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
        where = f"line {number} of {name}"
        if len(line) > MAX_LINE_BYTES:
            raise ProbeError(
                f"{where} is longer than {MAX_LINE_BYTES // 2**20} MiB",
                hint="give one sequence per line: cut it into several",
            )
        data = _parse(line, where) if line.strip() else None
        if number == 1 and isinstance(data, dict) and HEADER_KEY in data:
            header = _read_header(data, name)
            continue
        content.update(line.rstrip(b"\r\n") + b"\n")
        if line.strip():
            rows += rows_of(data, number, where, options)
    if header is not None and header.sha256 not in (None, content.hexdigest()):
        raise ProbeError(
            f"the probe {name} was changed or cut after it was built",
            found=f"hash {content.hexdigest()[:12]} instead of {str(header.sha256)[:12]}",
            hint='copy it again, or remove "sha256" from its first line if the change is meant',
        )
    return ProbeFile(tuple(rows), content.hexdigest(), header)


def _parse(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProbeError(
            f"{where} is not JSON", found=str(error)[:200], hint=f"give {FORMATS}"
        ) from error


def _read_header(data: dict[str, Any], name: str) -> Header:
    if data[HEADER_KEY] != HEADER_VERSION:
        raise ProbeError(
            f"{name} is a probe of another version",
            found=repr(data[HEADER_KEY])[:40],
            hint="update moegeo, or build the probe again",
        )
    for key, kind in (("tokenizer", str), ("vocab_size", int), ("sha256", str)):
        if data.get(key) is not None and type(data[key]) is not kind:
            raise ProbeError(f"{key} in the header of {name} is not understood",
                             found=repr(data[key])[:80])  # fmt: skip
    return Header(data.get("tokenizer"), data.get("vocab_size"), data.get("sha256"))
