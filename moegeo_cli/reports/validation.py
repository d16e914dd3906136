"""Holds data to the part of JSON Schema that moegeo's own schemas use, without a dependency.

Keywords: $ref (to $defs), type, const, enum, required, properties, additionalProperties,
items, minimum, anyOf, allOf, if/then. Tests compare it with a full validator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def find_problem(data: Any, schema: Mapping[str, Any]) -> str | None:
    """The first place where the data does not have the schema's shape, or None.

    Args:
        data: parsed JSON.
        schema: a JSON Schema of the keywords above.

    Returns:
        A sentence such as "checkpoints[0].loss: value is missing".
    """
    return _problem(data, schema, schema, "")


def _problem(data: Any, rule: Mapping[str, Any], root: Mapping[str, Any], at: str) -> str | None:
    if "$ref" in rule:
        found = _problem(data, root["$defs"][rule["$ref"].removeprefix("#/$defs/")], root, at)
        if found:
            return found
    place = at or "the file"
    kinds = rule.get("type")
    if kinds is not None:
        names = [kinds] if isinstance(kinds, str) else kinds
        if not any(_is(data, name) for name in names):
            return f"{place}: expected {' or '.join(names)}, found {_show(data)}"
    if "const" in rule and data != rule["const"]:
        return f"{place}: expected {rule['const']!r}, found {_show(data)}"
    if "enum" in rule and data not in rule["enum"]:
        return f"{place}: expected one of {rule['enum']}, found {_show(data)}"
    if "minimum" in rule and _is(data, "number") and data < rule["minimum"]:
        return f"{place}: {_show(data)} is below {rule['minimum']}"
    return _nested(data, rule, root, at)


def _nested(data: Any, rule: Mapping[str, Any], root: Mapping[str, Any], at: str) -> str | None:
    """Problems inside the data, and of rules made of rules."""
    place = at or "the file"
    if isinstance(data, dict):
        for name in rule.get("required", ()):
            if name not in data:
                return f"{place}: {name} is missing"
        known, others = rule.get("properties", {}), rule.get("additionalProperties", True)
        for name, value in data.items():
            inner = known.get(name, others)
            where = f"{at}.{name}"[:200].lstrip(".")
            if inner is False:
                return f"{where}: this key is not known"
            found = _problem(value, inner, root, where) if isinstance(inner, Mapping) else None
            if found:
                return found
    if isinstance(data, list) and "items" in rule:
        for place_, value in enumerate(data):
            found = _problem(value, rule["items"], root, f"{at}[{place_}]")
            if found:
                return found
    for inner in rule.get("allOf", ()):
        found = _problem(data, inner, root, at)
        if found:
            return found
    tried = [_problem(data, inner, root, at) for inner in rule.get("anyOf", ())]
    if tried and all(tried):
        return tried[-1]
    if "if" in rule and _problem(data, rule["if"], root, at) is None:
        return _problem(data, rule.get("then", {}), root, at)
    return None


def _is(data: Any, name: str) -> bool:
    if isinstance(data, bool) and name != "boolean":
        return False
    if name == "integer" and isinstance(data, float):
        return data.is_integer()
    return isinstance(data, _TYPES[name])


def _show(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
