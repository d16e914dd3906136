"""Convert records to plain JSON values and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

R = TypeVar("R")


def to_dict(record: Any) -> Any:
    """Turn a record (or a mapping or sequence of records) into plain JSON values.

    Raises:
        ValueError: the record contains NaN or infinity, which JSON does not have.
    """
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_dict(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_dict(value) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return [to_dict(value) for value in record]
    if isinstance(record, float) and (record != record or record in (float("inf"), -float("inf"))):
        raise ValueError("a record may not hold NaN or infinity; use None and a reason")
    return record


def from_dict(cls: type[R], data: Any) -> R:
    """Read a record from its JSON form. Unknown keys are ignored: a newer moegeo may add some.

    Raises:
        ValueError: a key without a default is missing, or a value has the wrong type, is out of
            bounds, or is not one of the allowed words.
    """
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:  # it is a ValueError only in newer versions
        raise ValueError(str(error)) from error
