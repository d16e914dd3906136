"""Derive the JSON Schema of a format from the types of its record."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_type_hints, is_typeddict

import msgspec

from moegeo_cli.records.formats import VERSION
from moegeo_cli.records.metric import NULL_HAS_REASON, Metric
from moegeo_cli.registry import records


def schema(name: str = "moegeo.run", *, strict: bool = False) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a format.

    Args:
        name: name of the format, for example "moegeo.run".
        strict: refuse keys that this moegeo does not write. Otherwise unknown keys are allowed, as
            keys may be added within a format version.

    Raises:
        KeyError: an unknown format.
    """
    record, version = records()[name], VERSION
    _, parts = msgspec.json.schema_components([record], ref_template="#/$defs/{name}")
    own = _records(record)
    for part_name, part in parts.items():
        _finish(part, part_name in own, strict)
    if Metric.__name__ in parts:
        parts[Metric.__name__] |= NULL_HAS_REASON
    root = parts.pop(record.__name__)
    head: dict[str, Any] = {
        "type": "object",
        "description": "Keys may be added within a version; none is removed, renamed or given "
        "another meaning.",
        "required": ["name", "version"],
        "properties": {"name": {"const": name}, "version": {"type": "integer", "const": version}},
    }
    if strict:
        head["additionalProperties"] = False
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **root,
        "title": f"{name}, version {version}",
        "required": ["format", *root["required"]],
        "properties": {"format": head, **root["properties"]},
        "$defs": parts,
    }


def _finish(part: dict[str, Any], always: bool, strict: bool) -> None:
    """Complete the schema of an object in place: required keys, and no defaults.

    Args:
        part: the schema.
        always: whether the object is a record. Files contain every unmarked field of a record, also
            fields with a default in Python.
        strict: refuse other keys.
    """
    required = set(part["properties"] if always else part["required"])
    for name, field in part["properties"].items():
        field.pop("default", None)
        if field.pop("x-later", False):
            required.discard(name)
        if field.pop("x-where-due", False):
            required.discard(name)
            [kind] = (kind for kind in field.pop("anyOf") if kind != {"type": "null"})
            field |= kind
    part["required"] = [name for name in part["properties"] if name in required]
    if strict:
        part["additionalProperties"] = False


def _records(kind: Any) -> set[str]:
    """Names of all records inside a type, including itself."""
    record = dataclasses.is_dataclass(kind)
    inner = get_type_hints(kind).values() if record or is_typeddict(kind) else get_args(kind)
    return set().union({kind.__name__} if record else (), *map(_records, inner))
