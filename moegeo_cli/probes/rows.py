"""Rows of a probe file before tokenising, and the options with which a file is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moegeo_cli.errors import ProbeError, UsageError

MAX_DOMAIN = 80
MAX_DOMAINS = 200
MAX_BYTES = 256 * 2**20
READ_BYTES = 64 * 2**20  # of a larger table or token file, this much is read in evenly spaced parts
FORMATS = "a file of text, token ids or chats (docs/reference/probe-files.md lists the forms)"
HEADER_KEY = "moegeo.probe"
HEADER_VERSION = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Which file a probe is read from, and which keys of its records are used.

    `path` None is the bundled probe. `text_key` is the key of text, token ids or messages; None
    for the usual keys. `domain_key` is the key of the domain; None for "domain".
    """

    path: Path | None = None
    text_key: str | None = None
    domain_key: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and (self.text_key or self.domain_key):
            raise UsageError(
                "--text-key and --domain-key need a probe file, and none is given",
                found=self.text_key or self.domain_key,
                hint="name the file: --probe FILE",
            )

    @classmethod
    def of(cls, given: Source | Path | str | None) -> Source:
        """A source from a path; a source is returned unchanged."""
        return given if isinstance(given, Source) else cls(None if given is None else Path(given))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Source:
        """The source that a command's options name."""
        probe = options["probe"]
        path = None if probe is None else Path(probe)
        return cls(path, options["text_key"], options["domain_key"])


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a probe file is read: the user's keys, and facts about the model.

    `ends` are the ids that end a document; `length` is the model's context length, None for any.
    """

    text_key: str | None = None
    domain_key: str | None = None
    vocab_size: int | None = None
    ends: tuple[int, ...] = ()
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages of a conversation, and the tools that are passed to the chat template."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] | None = None

    def render(self) -> str:
        """The conversation as JSON; equal conversations give equal text."""
        known = {"messages": list(self.messages)}
        if self.tools is not None:
            known["tools"] = list(self.tools)
        return json.dumps(known, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: either token ids, text, a chat, or the input tensors of another kind of model.

    `line` is the line of the file or the row of the table, from 1. `positions` goes with `inputs`.
    Ids keep the integer type of their file.
    """

    line: int
    input_ids: np.ndarray | None = None
    text: str | None = None
    labels: np.ndarray | None = None
    domain: str | None = None
    inputs: Mapping[str, np.ndarray] | None = None
    positions: int = 1
    chat: Chat | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a file that `moegeo probe build` wrote.

    `tokenizer` is "bytes", a tokenizer's hash, or None if the rows are text; `sha256` is the hash
    of the lines after it.
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
    """The rows of a file, a hash of its content, its header if any, and notes for the report."""

    rows: tuple[Row, ...]
    sha256: str
    header: Header | None = None
    notes: tuple[str, ...] = ()


def hash_rows(rows: Iterable[Row]) -> str:
    """Hash of the rows that were read, for files that are not read whole."""
    found = hashlib.sha256()
    for row in rows:
        found.update(f"{row.domain!r}\0".encode())
        if row.input_ids is not None:
            found.update(np.asarray(row.input_ids, dtype="<i8").tobytes())
        if row.labels is not None:
            found.update(b"labels" + np.asarray(row.labels, dtype="<i8").tobytes())
        words = row.text or (row.chat.render() if row.chat else "")
        found.update(words.encode("utf-8", "surrogatepass") + b"\n")
    return found.hexdigest()


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` of the numbers 0 … count − 1, evenly spaced, starting with 0."""
    if count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8; a lone surrogate cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_domain(name: Any) -> bool:
    """Whether a value can name a domain: a printable string of 1 to `MAX_DOMAIN` characters."""
    return isinstance(name, str) and 0 < len(name) <= MAX_DOMAIN and name.isprintable()


def printable(text: str) -> str:
    """Text from a file as one printable line, with control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def missing_library(library: str, name: str, what: str) -> ProbeError:
    """The error for a file that needs an optional library which is not installed."""
    return ProbeError(
        f"{name} is {what}; reading it needs {library}, which is not installed",
        hint="pip install 'moegeo[probes]'",
    )
