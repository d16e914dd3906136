"""The formats of a probe file: JSON Lines, plain text, safetensors of named inputs.

Reading is strict: a line that is not understood is an error with its number, never skipped.

Legend: S sequences, N tokens of a sequence.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError
from moegeo_cli.probes.dataset import spread
from moegeo_cli.probes.passages import read_passages
from moegeo_cli.probes.rows import FORMATS, MAX_DOMAIN, Row, is_domain, is_text, printable
from moegeo_cli.probes.tensors import read_tensors

__all__ = ["Header", "ProbeFile", "Row", "is_domain", "printable", "read_file"]

MAX_BYTES = 256 * 2**20
MAX_LINE_BYTES = 16 * 2**20  # of JSON, which takes up to forty times as much memory
HEADER_KEY = "moegeo.probe"
HEADER_VERSION = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What `moegeo probe build` writes first.

    `tokenizer` is "bytes", a tokenizer's hash, or None where the rows are text; `sha256` is
    of the lines that follow.
    """

    tokenizer: str | None = None
    vocab_size: int | None = None
    sha256: str | None = None

    def render(self) -> str:
        """The header as the file's first line."""
        known = {"tokenizer": self.tokenizer, "vocab_size": self.vocab_size, "sha256": self.sha256}
        facts = {key: value for key, value in known.items() if value is not None}
        return json.dumps({HEADER_KEY: HEADER_VERSION, **facts}) + "\n"


@dataclass(frozen=True, slots=True)
class ProbeFile:
    """A file's rows, the hash of its bytes (without the header), and the header if any."""

    rows: tuple[Row, ...]
    sha256: str
    header: Header | None = None


def read_file(path: Path) -> ProbeFile:
    """Read a probe file by its suffix; anything unknown is plain text.

    Raises:
        ProbeError: no such file, too large, not of its format, or without a token.
    """
    name = printable(path.name)
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ProbeError(
                f"the probe {name} is not a file",
                found="a folder" if path.is_dir() else "a pipe or a device",
                hint=f"give {FORMATS}",
            )
        if size > MAX_BYTES:
            raise ProbeError(
                f"the probe {name} is too large",
                found=f"{size / 2**20:,.0f} MiB, at most {MAX_BYTES // 2**20}",
                hint="65,536 tokens are plenty: cut the file, a part of its lines is enough",
            )
        suffix = path.suffix.lower()
        if suffix == ".safetensors":
            found = ProbeFile(tuple(read_tensors(path)), _hash(path))
        elif suffix in {".jsonl", ".json", ".ndjson"}:
            found = _read_lines(path)
        else:
            found = ProbeFile(tuple(read_passages(path)), _hash(path))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path itself
        raise ProbeError(
            f"the probe {printable(str(path))} cannot be read",
            found=getattr(error, "strerror", None) or str(error)[:200],
            hint=f"give {FORMATS}",
        ) from error
    except MemoryError as error:
        raise ProbeError(f"the probe {name} is too large for this machine's memory") from error
    if not found.rows:
        raise ProbeError(f"the probe {name} holds no token", hint=f"give {FORMATS}")
    return found


def describe_rows(file: ProbeFile) -> dict[str, Any]:
    """What is known of a probe file without a model: ids in tokens, text in bytes."""
    sizes = [_size(row) for row in file.rows]
    text = [row.text is not None for row in file.rows]
    unit = "bytes" if all(text) else "size" if any(text) else "tokens"
    domains = Counter(r.domain for r in file.rows if r.domain is not None)
    return {
        "sha256": file.sha256,
        "sequences": len(file.rows),
        unit: sum(sizes),
        "lengths": spread(sizes),
        "domains": dict(sorted(domains.items())),
        "tokenizer": file.header.tokenizer if file.header else None,
    }


def _size(row: Row) -> int:
    if row.text is not None:
        return len(row.text.encode())
    return row.positions if row.input_ids is None else len(row.input_ids)


def _read_lines(path: Path) -> ProbeFile:
    rows: list[Row] = []
    header: Header | None = None
    content = hashlib.sha256()
    name = printable(path.name)
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            where = f"line {number} of {name}"
            if len(line) > MAX_LINE_BYTES:
                raise ProbeError(
                    f"{where} is longer than {MAX_LINE_BYTES // 2**20} MiB",
                    hint="one sequence a line: cut it into several",
                )
            data = _parse(line, where) if line.strip() else None
            if number == 1 and isinstance(data, dict) and HEADER_KEY in data:
                header = _read_header(data, name)
                continue
            content.update(line.rstrip(b"\r\n") + b"\n")
            if line.strip():
                rows.append(_row(data, number, where))
    if header is not None and header.sha256 not in (None, content.hexdigest()):
        raise ProbeError(
            f"the probe {name} is not as it was built: its lines were cut or changed",
            found=f"{content.hexdigest()[:12]} instead of {str(header.sha256)[:12]}",
            hint='copy it again, or remove "sha256" from its first line if the change is meant',
        )
    return ProbeFile(tuple(rows), content.hexdigest(), header)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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


def _row(data: Any, number: int, where: str) -> Row:
    if not isinstance(data, dict) or ("input_ids" in data) == ("text" in data):
        keys = ", ".join(map(repr, sorted(data)))[:200] if isinstance(data, dict) else ""
        raise ProbeError(
            f"{where} needs either input_ids or text",
            found=keys or ("an empty object" if isinstance(data, dict) else "no object"),
        )
    domain = data.get("domain")
    if domain is not None and not is_domain(domain):
        raise ProbeError(
            f"the domain in {where} is not a short name",
            found=ascii(domain)[:80],
            hint=f"a string of printable characters, at most {MAX_DOMAIN}",
        )
    if "text" in data:
        text = data["text"]
        if not isinstance(text, str) or not text:
            raise ProbeError(f"the text in {where} holds no token", found=ascii(text)[:80])
        if not is_text(text):
            raise ProbeError(f"the text in {where} is not Unicode", found="half of a surrogate")
        if data.get("labels") is not None:
            raise ProbeError(f"{where} has labels for a text", hint="give input_ids with labels")
        return Row(number, text=text, domain=domain)
    ids_N = _integers(data["input_ids"], "input_ids", where)
    labels_N = None
    if data.get("labels") is not None:
        labels_N = _integers(data["labels"], "labels", where)
        if len(labels_N) != len(ids_N):
            raise ProbeError(
                f"{where} has labels of another length than its input_ids",
                found=f"{len(ids_N)} input_ids and {len(labels_N)} labels",
                hint="labels stand at their own tokens; -100 for no loss",
            )
    return Row(number, input_ids=ids_N, labels=labels_N, domain=domain)


def _integers(values: Any, name: str, where: str) -> np.ndarray:
    if not isinstance(values, list) or not values:
        raise ProbeError(f"{name} in {where} hold no token", found=ascii(values)[:80])
    for value in values:
        if type(value) is not int or not -(2**62) < value < 2**62:
            raise ProbeError(f"{name} in {where} are not all integers", found=ascii(value)[:80])
    return np.array(values, dtype=np.int64)
