"""Finds required keys that a JSON file lacks and that decoding does not check.

The defaults of a record's fields are for Python. A file without a required key is not a complete
report, and a default would be a value that nobody measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Rule = Mapping[str, Any]


def find_missing(data: Any, schema: Rule) -> str | None:
    """Find the first key that a schema requires and that the data lacks.

    Args:
        data: parsed JSON whose values have the types of the schema.
        schema: a schema from `moegeo_cli.records.schema`.

    Returns:
        A sentence such as "checkpoints[0].loss: value is missing"; None if nothing is missing.
    """
    return _missing(data, schema, schema["$defs"], "")


def _missing(data: Any, rule: Rule, parts: Mapping[str, Rule], at: str) -> str | None:
    if data is None:
        return None
    rule = next((kind for kind in rule.get("anyOf", ()) if kind.get("type") != "null"), rule)
    if "$ref" in rule:
        rule = parts[rule["$ref"].removeprefix("#/$defs/")]
    if isinstance(data, dict):
        lacking = [name for name in rule.get("required", ()) if name not in data]
        if "then" in rule and data.get("value") is None:  # a metric without a value
            lacking += [name for name in rule["then"]["required"] if data.get(name) is None]
        if lacking:
            return f"{at.lstrip('.') or 'the file'}: {lacking[0]} is missing"
    inside = (
        _missing(value, inner, parts, at + place) for place, value, inner in _children(data, rule)
    )
    return next((found for found in inside if found), None)


def _children(data: Any, rule: Rule) -> Iterator[tuple[str, Any, Rule]]:
    """The path, value and schema of each entry of an object or an array."""
    if isinstance(data, dict):
        known, others = rule.get("properties", {}), rule.get("additionalProperties", {})
        for name, value in data.items():
            yield f".{name}"[:200], value, known.get(name, others)
    elif isinstance(data, list) and rule.get("items"):
        for place, value in enumerate(data):
            yield f"[{place}]", value, rule["items"]
