"""Turns any record into rows: one table of all its metrics, and one for each of its lists.

The code walks through the fields of any record, so a new record or field needs no code here. Every
row has the place of its value (step, layer, router, …).
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from moegeo_cli.records import Metric
from moegeo_cli.records.comparison import Difference

Row = dict[str, Any]
PLACES = (
    "step", "checkpoint", "step_a", "step_b", "layer", "router", "other_layer", "other_router",
    "domain", "expert", "pairs", "hidden", "usage", "action", "choice",
)  # fmt: skip
CELLS = ("value", "ci_low", "ci_high", "n", "unit", "null_value", "reason")
# Fields whose metrics appear elsewhere too, for example as evidence of a finding.
REPEATED = {"findings", "interventions", "checks", "verdict", "baseline"}


def tables(record: Any) -> dict[str, list[Row]]:
    """The rows of a record, by table.

    The table `metrics` has one row per metric, with its interval. Every list of the record is a
    table with the list's name: `layers`, `findings`, `merge_candidates`, …
    """
    found: dict[str, list[Row]] = defaultdict(list)
    _walk(record, "", {}, found)
    return dict(found)


def _walk(item: Any, prefix: str, above: Row, found: dict[str, list[Row]]) -> None:
    fields = dict(_fields(item))
    place = {**above, **{k: fields[k] for k in PLACES if _is_scalar(fields.get(k, ...))}}
    if "layers" in fields and "checkpoint" not in fields and isinstance(fields.get("path"), str):
        place["checkpoint"] = fields["path"]
    if "to_step" in fields:
        place["step"], prefix = fields["to_step"], "dynamics."
    for name, value in fields.items():
        if isinstance(value, Metric | Difference):
            found["metrics"].append(_row(place, prefix + name, value))
        elif isinstance(value, tuple | list):
            for part in value:
                if dataclasses.is_dataclass(part) or isinstance(part, Mapping):
                    found[prefix + name].append({**place, **_scalars(part)})
                    if name not in REPEATED:
                        named = {"metrics", "differences"} & dict(_fields(part)).keys()
                        _walk(part, prefix if named else f"{prefix}{name}.", place, found)
        elif isinstance(value, Mapping):
            start = prefix if name in ("metrics", "differences") else f"{prefix}{name}."
            found["metrics"] += [_row(place, start + key, m) for key, m in _numbers(value)]
        elif dataclasses.is_dataclass(value) and name not in REPEATED:
            _walk(value, f"{prefix}{name}.", place, found)


def _fields(item: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(item, Mapping):
        yield from item.items()
    else:
        yield from ((f.name, getattr(item, f.name)) for f in dataclasses.fields(item))


def _numbers(value: Mapping[str, Any]) -> Iterator[tuple[str, Metric | Difference]]:
    """The metrics of a mapping; those of inner mappings have dotted names."""
    for key, part in value.items():
        if isinstance(part, Metric | Difference):
            yield key, part
        elif isinstance(part, Mapping):
            yield from ((f"{key}.{inner}", metric) for inner, metric in _numbers(part))


def _row(place: Row, name: str, found: Metric | Difference) -> Row:
    if isinstance(found, Difference):
        cells = {name: getattr(found.difference, name) for name in CELLS[1:]}
        sides = {"a": found.a.value, "b": found.b.value, "difference": found.difference.value}
        return {**place, "metric": name, **sides, **cells}
    return {**place, "metric": name, **{cell: getattr(found, cell) for cell in CELLS}}


def _scalars(item: Any) -> Row:
    kept = {}
    for name, value in _fields(item):
        if _is_scalar(value):
            kept[name] = value
        elif isinstance(value, tuple) and all(map(_is_scalar, value)) and len(value) < 3:
            kept[name] = list(value)
        elif isinstance(value, Metric):
            kept[name] = value.value
    return kept


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)
