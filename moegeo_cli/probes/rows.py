"""A sequence as a probe file has it, before any tokenizer, and what a file is read for."""

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
READ_BYTES = 64 * 2**20  # what is taken of a table or a token file, evenly spread over it
FORMATS = "a file of text, token ids or chats (docs/reference/probe-files.md lists the forms)"
HEADER_KEY = "moegeo.probe"
HEADER_VERSION = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Which file a probe is read from, and under which keys of a record.

    `path` None is the bundled probe. `text_key` names text, token ids or messages; None for the
    usual names. `domain_key` names the domain; None for "domain".
    """

    path: Path | None = None
    text_key: str | None = None
    domain_key: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and (self.text_key or self.domain_key):
            raise UsageError(
                "--text-key and --domain-key are of a probe file, and none is given",
                found=self.text_key or self.domain_key,
                hint="name the file: --probe FILE",
            )

    @classmethod
    def of(cls, given: Source | Path | str | None) -> Source:
        """A source as such, or a path alone."""
        return given if isinstance(given, Source) else cls(None if given is None else Path(given))

    @classmethod
    def chosen(cls, options: Mapping[str, Any]) -> Source:
        """The one that a command's options name."""
        probe = options["probe"]
        path = None if probe is None else Path(probe)
        return cls(path, options["text_key"], options["domain_key"])


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a form needs to know of the model and of the user's keys to read a file.

    `ends` are the ids that end a document; `length` is the model's context, None for any.
    """

    text_key: str | None = None
    domain_key: str | None = None
    vocab_size: int | None = None
    ends: tuple[int, ...] = ()
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns of a conversation, and the tools that its template is told of."""

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...] | None = None

    def render(self) -> str:
        """The same as JSON, in one way."""
        known = {"messages": list(self.messages)}
        if self.tools is not None:
            known["tools"] = list(self.tools)
        return json.dumps(known, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Row:
    """One of ids, text, a chat, and the inputs of a model that takes something else.

    `line` counts from 1; of a table it is the row. `positions` goes with `inputs`. Ids keep the
    type of their file.
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
    """A file's rows, a hash of its content, the header if any, and what a report must say of it."""

    rows: tuple[Row, ...]
    sha256: str
    header: Header | None = None
    notes: tuple[str, ...] = ()


def hash_rows(rows: Iterable[Row]) -> str:
    """The hash of rows out of a file that is not read whole."""
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


def spread_over(count: int, wanted: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread, the first one among them."""
    if count <= wanted:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8, which half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_domain(name: Any) -> bool:
    """Whether this is a short printable name."""
    return isinstance(name, str) and 0 < len(name) <= MAX_DOMAIN and name.isprintable()


def printable(text: str) -> str:
    """A foreign string in one line, its control characters escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def lacking(library: str, name: str, what: str) -> ProbeError:
    """The refusal where an optional library is absent."""
    return ProbeError(
        f"{name} is {what}, which is read with {library}, and {library} is not installed",
        hint="pip install 'moegeo[probes]'",
    )
