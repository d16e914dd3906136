"""The JSON Schema of a format, derived from the types of its record."""

from __future__ import annotations

from typing import Any

import msgspec

from moegeo_cli.records.formats import RECORDS, VERSIONS
from moegeo_cli.records.metric import NULL_HAS_REASON, Metric


def schema(name: str = "moegeo.run", *, strict: bool = False) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a format, such as "moegeo.run".

    Args:
        name: of the format.
        strict: refuse keys that this version does not write. Without it a file of the same
            version may hold keys that were added later, as the format promises.
    """
    record, version = RECORDS[name], VERSIONS[name]
    _, parts = msgspec.json.schema_components([record], ref_template="#/$defs/{name}")
    for part in parts.values():
        _finish(part, strict)
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


def _finish(part: dict[str, Any], strict: bool) -> None:
    """Say of an object what its files hold: every field is written, unless it is marked.

    A default belongs to the Python class. It is no reason for a file to lack the key.
    """
    required = set(part["required"])
    for name, field in part["properties"].items():
        later, where_due = field.pop("x-later", False), field.pop("x-where-due", False)
        if where_due:
            [field_type] = (kind for kind in field.pop("anyOf") if kind != {"type": "null"})
            field |= field_type
        elif "default" in field and not later:
            required.add(name)
        field.pop("default", None)
    part["required"] = [name for name in part["properties"] if name in required]
    if strict:
        part["additionalProperties"] = False
