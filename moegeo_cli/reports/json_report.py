"""The JSON formats: written so that equal records give equal bytes, read with every doubt named.

Objects keep the records' order, short ones and arrays of numbers stand on one line. The text
is ASCII, so that no locale can break it..
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from moegeo_cli.errors import FormatError
from moegeo_cli.records import from_dict, to_dict
from moegeo_cli.records.formats import NAMES, VERSIONS, AnyRecord
from moegeo_cli.records.schema import schema
from moegeo_cli.reports.validation import find_missing

R = TypeVar("R", bound=AnyRecord)
# Keys of a metric that are there only where they say something.
_WHERE_DUE = ("null_value", "reason", "router")
_METRIC = {"value", "ci_low", "ci_high", "n", "unit", "higher_is_better"}
_LINE = 160  # objects longer than this are broken over lines


def render(record: AnyRecord) -> str:
    """The record as JSON text that ends with a line break."""
    name = NAMES[type(record)]
    payload = {
        "format": {"name": name, "version": VERSIONS[name]},
        **_tidy(to_dict(record)),
    }
    return _write(payload, 0) + "\n"


def read(text: str | bytes, record: type[R]) -> R:
    """A record from its JSON text.

    Raises:
        FormatError: not JSON, not of the record's format, of a newer version, or damaged.
    """
    name = NAMES[record]
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
    if version > VERSIONS[name]:
        raise FormatError(
            "the file was written by a newer moegeo",
            found=f"{name} version {version}; this moegeo reads up to {VERSIONS[name]}",
            hint="pip install --upgrade moegeo",
        )
    try:
        found, problem = from_dict(record, data), find_missing(data, schema(name))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the {name} file is damaged", found=str(error)[:200]) from error
    if problem:
        raise FormatError(f"the {name} file is damaged", found=problem)
    return found


def _tidy(value: Any) -> Any:
    """Leave out of metrics what is not due, and repair text that no file can hold."""
    if isinstance(value, dict):
        is_metric = value.keys() >= _METRIC
        return {
            _text(key): _tidy(entry)
            for key, entry in value.items()
            if not (is_metric and entry is None and key in _WHERE_DUE)
        }
    if isinstance(value, list):
        return [_tidy(entry) for entry in value]
    return _text(value) if isinstance(value, str) else value


def _text(text: str) -> str:
    """Lone surrogates (bytes of a path that are not text) replaced: strict readers refuse them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _write(value: Any, depth: int) -> str:
    """JSON text; leaves of the tree on one line."""
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
            "the file is not whole JSON",
            found=f"line {error.lineno}, column {error.colno}: {error.msg}",
        ) from error
    except (ValueError, RecursionError) as error:
        raise FormatError("the file is not JSON", found=str(error)[:200]) from error


def _kind(data: Any) -> str:
    if isinstance(data, dict):
        return "keys " + (", ".join(str(k)[:40] for k in list(data)[:8]) or "none")
    return f"a JSON {type(data).__name__}"
