"""The JSON formats: written so that equal records give equal bytes, read with every doubt named.

Objects keep the records' order, short ones and arrays of numbers stand on one line. The text
is ASCII, so that no locale can break it. Schemas ship in `schema/`.
"""

from __future__ import annotations

import copy
import json
from importlib import resources
from typing import Any, TypeVar, cast

from moegeo_cli import check_records, comparison, experts_records, records, routing_records
from moegeo_cli.check_records import CheckRecord
from moegeo_cli.comparison import ComparisonRecord
from moegeo_cli.errors import FormatError
from moegeo_cli.experts_records import ExpertsRecord
from moegeo_cli.records import RunRecord, from_dict, to_dict
from moegeo_cli.reports.validation import find_problem
from moegeo_cli.routing_records import RoutingRecord

AnyRecord = RunRecord | ComparisonRecord | ExpertsRecord | RoutingRecord | CheckRecord
R = TypeVar("R", RunRecord, ComparisonRecord, ExpertsRecord, RoutingRecord, CheckRecord)
VERSIONS = {
    records.FORMAT_NAME: records.FORMAT_VERSION,
    comparison.FORMAT_NAME: comparison.FORMAT_VERSION,
    experts_records.FORMAT_NAME: experts_records.FORMAT_VERSION,
    routing_records.FORMAT_NAME: routing_records.FORMAT_VERSION,
    check_records.FORMAT_NAME: check_records.FORMAT_VERSION,
}
NAMES: dict[type, str] = {
    RunRecord: records.FORMAT_NAME,
    ComparisonRecord: comparison.FORMAT_NAME,
    ExpertsRecord: experts_records.FORMAT_NAME,
    RoutingRecord: routing_records.FORMAT_NAME,
    CheckRecord: check_records.FORMAT_NAME,
}
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


def read(text: str | bytes) -> RunRecord:
    """A run from its JSON text.

    Raises:
        FormatError: not JSON, not a run, of a newer version, or damaged.
    """
    return _read(text, RunRecord, records.FORMAT_NAME)


def read_comparison(text: str | bytes) -> ComparisonRecord:
    """A comparison from its JSON text.

    Raises:
        FormatError: not JSON, not a comparison, of a newer version, or damaged.
    """
    return _read(text, ComparisonRecord, comparison.FORMAT_NAME)


def read_experts(text: str | bytes) -> ExpertsRecord:
    """An analysis of experts from its JSON text.

    Raises:
        FormatError: not JSON, not such an analysis, of a newer version, or damaged.
    """
    return _read(text, ExpertsRecord, experts_records.FORMAT_NAME)


def read_routing(text: str | bytes) -> RoutingRecord:
    """An analysis of what routing reflects from its JSON text.

    Raises:
        FormatError: not JSON, not such an analysis, of a newer version, or damaged.
    """
    return _read(text, RoutingRecord, routing_records.FORMAT_NAME)


def read_check(text: str | bytes) -> CheckRecord:
    """A check of files from its JSON text.

    Raises:
        FormatError: not JSON, not such a check, of a newer version, or damaged.
    """
    return _read(text, CheckRecord, check_records.FORMAT_NAME)


def schema(name: str = records.FORMAT_NAME, *, strict: bool = False) -> dict[str, Any]:
    """The JSON Schema of a format.

    Args:
        name: "moegeo.run", "moegeo.compare", "moegeo.experts", "moegeo.routing" or
            "moegeo.check".
        strict: refuse keys that this version does not write. Without it a file of the same
            version may hold keys that were added later, as the format promises.
    """
    file = resources.files("moegeo_cli.reports") / "schema" / f"{name}.v{VERSIONS[name]}.json"
    found = cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))
    return _close(copy.deepcopy(found)) if strict else found


def _close(node: Any) -> Any:
    """Forbid further keys wherever a schema lists an object's keys."""
    if isinstance(node, dict):
        if "properties" in node and "additionalProperties" not in node:
            node["additionalProperties"] = False
        for name, value in node.items():
            if name != "if":  # a condition asks about the keys that it names, nothing else
                _close(value)
    elif isinstance(node, list):
        for value in node:
            _close(value)
    return node


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


def _read(text: str | bytes, kind: type[R], name: str) -> R:
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
    problem = find_problem(data, schema(name))
    if problem:
        raise FormatError(f"the {name} file is damaged", found=problem)
    try:
        return from_dict(kind, data)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"the {name} file is damaged", found=str(error)) from error


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
