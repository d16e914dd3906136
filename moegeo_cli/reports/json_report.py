"""Writes and reads the JSON formats. Equal records give equal bytes.

Objects keep the order of the record's fields. Short objects and arrays of numbers are on one line.
The text is ASCII, so that no locale can break it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from moegeo_cli.errors import FormatError
from moegeo_cli.records import from_dict
from moegeo_cli.records.fields import OMIT_IF_NONE
from moegeo_cli.records.formats import VERSION, AnyRecord, format_of
from moegeo_cli.records.schema import schema
from moegeo_cli.registry import records
from moegeo_cli.reports.validation import find_missing

R = TypeVar("R", bound=AnyRecord)
_LINE = 160  # objects longer than this are broken over lines


def render(record: AnyRecord) -> str:
    """The record as JSON text with a final line break."""
    name = format_of(type(record))
    payload = {
        "format": {"name": name, "version": VERSION},
        **plain(record),
    }
    return _write(payload, 0) + "\n"


def read_any(text: str | bytes) -> AnyRecord:
    """Read a record of any format from its JSON text.

    Raises:
        FormatError: not a format of moegeo; also see `read`.
    """
    data = _parse(text)
    head = data.get("format") if isinstance(data, dict) else None
    name = head.get("name") if isinstance(head, dict) else None
    if not isinstance(name, str) or name not in records():
        raise FormatError(
            "this JSON is not a report of moegeo",
            found=_kind(data) if name is None else f"format {name!r}"[:120],
            hint="moegeo analyze RUN --format json writes one",
        )
    return read(text, records()[name])


def read(text: str | bytes, record: type[R]) -> R:
    """Read a record from its JSON text.

    Args:
        text: the JSON text.
        record: the record class.

    Raises:
        FormatError: not JSON, another format, a newer version, or damaged.
    """
    name = format_of(record)
    data = _parse(text)
    head = data.get("format") if isinstance(data, dict) else None
    if not isinstance(head, dict) or "name" not in head:
        raise FormatError(
            "this JSON does not say which format it is",
            found=_kind(data),
            hint=f'the first key of a moegeo file is "format": {{"name": "{name}", ...}}',
        )
    if head["name"] != name:
        raise FormatError(f"this is not a {name} file", found=f"format {head['name']!r}"[:120])
    version = head.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError("the format's version is not a number", found=repr(version)[:120])
    if version > VERSION:
        raise FormatError(
            "the file was written by a newer moegeo",
            found=f"{name} version {version}; this moegeo reads up to {VERSION}",
            hint="pip install --upgrade moegeo",
        )
    try:
        found, problem = from_dict(record, data), find_missing(data, schema(name))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the {name} file is damaged", found=str(error)[:200]) from error
    if problem:
        raise FormatError(f"the {name} file is damaged", found=problem)
    return found


def plain(value: Any) -> Any:
    """A record as plain values for JSON. Fields marked WHERE_DUE are left out if None."""
    if isinstance(value, str):
        return value if value.isascii() else _text(value)
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = ((name, due, getattr(value, name)) for name, due in _fields(type(value)))
        return {name: plain(entry) for name, due, entry in own if entry is not None or not due}
    return value


@functools.cache
def _fields(record: type) -> list[tuple[str, bool]]:
    """The names of a record's fields, and whether JSON leaves each out if it is None."""
    hints = get_type_hints(record, include_extras=True)
    return [(f.name, OMIT_IF_NONE in get_args(hints[f.name])) for f in dataclasses.fields(record)]


def _text(text: str) -> str:
    """Replace lone surrogates (undecodable bytes of a path), which strict readers refuse."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _write(value: Any, depth: int) -> str:
    """JSON text; values without inner objects or arrays are on one line."""
    entries = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(entries, list) or not entries:
        return _dump(value)
    if not any(isinstance(entry, dict | list) for entry in entries):
        line = _dump(value)
        if isinstance(value, list) or len(line) <= _LINE:
            return line
    pad, end = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict):
        lines = [f"{_dump(key)}: {_write(entry, depth + 1)}" for key, entry in value.items()]
        return "{" + pad + ("," + pad).join(lines) + end + "}"
    return "[" + pad + ("," + pad).join(_write(entry, depth + 1) for entry in value) + end + "]"


def _dump(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=True)


def _parse(text: str | bytes) -> Any:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise FormatError(
            "the file is not complete JSON",
            found=f"line {error.lineno}, column {error.colno}: {error.msg}",
        ) from error
    except (ValueError, RecursionError) as error:
        raise FormatError("the file is not JSON", found=str(error)[:200]) from error


def _kind(data: Any) -> str:
    if isinstance(data, dict):
        return "keys " + (", ".join(str(k)[:40] for k in list(data)[:8]) or "none")
    return f"a JSON {type(data).__name__}"
