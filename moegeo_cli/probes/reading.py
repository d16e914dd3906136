"""The formats of a probe file: JSON Lines, plain text, safetensors of named inputs.

Reading is strict: a line that is not understood is an error with its number, never skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError

MAX_BYTES = 2**30
MAX_LINE_BYTES = 64 * 2**20
PASSAGE_CHARACTERS = 1000  # of plain text, cut at paragraphs
HEADER_KEY = "moegeo_probe"
HEADER_VERSION = 1
FORMATS = "a .jsonl of input_ids or text, a .txt, or a .safetensors with input_ids"


@dataclass(frozen=True, slots=True)
class Row:
    """A sequence as the file has it: either ids or text. `line` counts from 1."""

    line: int
    input_ids: np.ndarray | None = None
    text: str | None = None
    labels: np.ndarray | None = None
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeFile:
    """A file's rows, and the tokenizer's hash where the file names one."""

    rows: tuple[Row, ...]
    tokenizer_sha256: str | None = None


def read_file(path: Path) -> ProbeFile:
    """Read a probe file by its suffix; anything unknown is plain text.

    Raises:
        ProbeError: no such file, too large, not of its format, or without a token.
    """
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise ProbeError(f"the probe {path.name} is a folder", hint=f"give {FORMATS}")
    except OSError as error:
        raise ProbeError(
            f"the probe {path} cannot be read", found=error.strerror, hint=f"give {FORMATS}"
        ) from error
    if size > MAX_BYTES:
        raise ProbeError(
            f"the probe {path.name} is too large",
            found=f"{size / 2**30:.1f} GiB, at most {MAX_BYTES // 2**30}",
            hint="a probe of 65,536 tokens is plenty; cut one with moegeo probe build",
        )
    if path.suffix == ".safetensors":
        found = ProbeFile(tuple(_read_tensors(path)))
    elif path.suffix in {".jsonl", ".json", ".ndjson"}:
        found = _read_lines(path)
    else:
        found = ProbeFile(tuple(read_passages(path)))
    if not found.rows:
        raise ProbeError(f"the probe {path.name} holds no token", hint=f"give {FORMATS}")
    return found


def read_passages(path: Path) -> Iterator[Row]:
    """Passages of a plain text, cut where a paragraph ends."""
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ProbeError(
            f"{path.name} is not UTF-8 text", found=f"byte {error.start}", hint=f"give {FORMATS}"
        ) from error
    except OSError as error:
        raise ProbeError(f"{path.name} cannot be read", found=error.strerror) from error
    passage, line, start = "", 1, 1
    for paragraph in text.split("\n\n"):
        if passage and len(passage) + len(paragraph) > PASSAGE_CHARACTERS:
            yield from _cut(passage, start)
            passage, start = "", line
        passage += ("\n\n" if passage else "") + paragraph
        line += paragraph.count("\n") + 2
    yield from _cut(passage, start)


def _cut(passage: str, line: int) -> Iterator[Row]:
    passage = passage.strip("\n")
    for place in range(0, len(passage), PASSAGE_CHARACTERS):
        piece = passage[place : place + PASSAGE_CHARACTERS]
        if piece.strip():
            yield Row(line, text=piece)


def _read_lines(path: Path) -> ProbeFile:
    rows: list[Row] = []
    tokenizer = None
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            where = f"line {number} of {path.name}"
            if len(line) > MAX_LINE_BYTES:
                raise ProbeError(f"{where} is longer than {MAX_LINE_BYTES // 2**20} MiB")
            if not line.strip():
                continue
            try:
                data = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ProbeError(
                    f"{where} is not JSON", found=str(error)[:200], hint=f"give {FORMATS}"
                ) from error
            if number == 1 and isinstance(data, dict) and HEADER_KEY in data:
                tokenizer = _read_header(data, path.name)
                continue
            rows.append(_row(data, number, where))
    return ProbeFile(tuple(rows), tokenizer)


def _read_header(data: dict[str, Any], name: str) -> str | None:
    if data[HEADER_KEY] != HEADER_VERSION:
        raise ProbeError(
            f"{name} is a probe of another version",
            found=f"{data[HEADER_KEY]!r}"[:40],
            hint="update moegeo, or build the probe again",
        )
    tokenizer = data.get("tokenizer_sha256")
    return tokenizer if isinstance(tokenizer, str) else None


def _row(data: Any, number: int, where: str) -> Row:
    if not isinstance(data, dict) or ("input_ids" in data) == ("text" in data):
        raise ProbeError(
            f"{where} needs either input_ids or text",
            found=", ".join(sorted(map(str, data)))[:200]
            if isinstance(data, dict)
            else "no object",
        )
    domain = data.get("domain")
    if domain is not None and not isinstance(domain, str):
        raise ProbeError(f"the domain in {where} is not a string", found=repr(domain)[:80])
    if "text" in data:
        text = data["text"]
        if not isinstance(text, str) or not text:
            raise ProbeError(f"the text in {where} is empty or no string")
        if "labels" in data:
            raise ProbeError(f"{where} has labels for a text", hint="give input_ids with labels")
        return Row(number, text=text, domain=domain)
    ids = _integers(data["input_ids"], "input_ids", where)
    labels = None
    if data.get("labels") is not None:
        labels = _integers(data["labels"], "labels", where)
        if len(labels) != len(ids):
            raise ProbeError(
                f"{where} has {len(ids)} input_ids and {len(labels)} labels",
                hint="labels stand at their own tokens; -100 for no loss",
            )
    return Row(number, input_ids=ids, labels=labels, domain=domain)


def _integers(values: Any, name: str, where: str) -> np.ndarray:
    if not isinstance(values, list) or not values:
        raise ProbeError(f"{name} in {where} hold no token")
    for value in values:
        if type(value) is not int or not -(2**62) < value < 2**62:
            raise ProbeError(f"{name} in {where} are not all integers", found=repr(value)[:80])
    return np.array(values, dtype=np.int64)


def _read_tensors(path: Path) -> Iterator[Row]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ProbeError(f"{path.name} cannot be read", found=str(error)[:200]) from error
    other = sorted(set(tensors) - {"input_ids", "attention_mask", "labels"})
    if other or "input_ids" not in tensors:
        raise ProbeError(
            f"{path.name} does not hold a language model's inputs",
            found=", ".join(sorted(tensors))[:200] or "no tensor",
            hint="input_ids, and optionally attention_mask and labels, each (sequences, tokens)",
        )
    ids_SN = tensors["input_ids"]
    for name, array in tensors.items():
        if array.ndim != 2 or array.shape != ids_SN.shape or array.dtype.kind not in "iub":
            raise ProbeError(
                f"{name} in {path.name} is not an integer table like input_ids",
                found=f"{array.dtype} {array.shape}",
            )
    mask_SN = tensors.get("attention_mask", np.ones_like(ids_SN)).astype(bool)
    for place, kept_N in enumerate(mask_SN):
        if not kept_N.any():
            continue
        labels = tensors["labels"][place][kept_N] if "labels" in tensors else None
        yield Row(
            place + 1,
            input_ids=ids_SN[place][kept_N].astype(np.int64),
            labels=None if labels is None else labels.astype(np.int64),
        )
