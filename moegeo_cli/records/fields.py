"""Annotations for the fields of records: descriptions, bounds, and whether a file must have them.

Reading a file checks the bounds (`convert`), and the JSON schemas are derived from the annotations
(`schema`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# A field that files of the same format version from an earlier moegeo do not have.
ADDED_LATER = Meta(extra_json_schema={"x-later": True})
# A field that JSON leaves out if it is None.
OMIT_IF_NONE = Meta(extra_json_schema={"x-where-due": True})

Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Values = tuple[float | None, ...]  # by expert; null if a value is missing or not finite
Matrix = tuple[tuple[float | None, ...], ...]  # E × E, by expert


def about(text: str) -> Meta:
    """The description of a field, for the JSON schema."""
    return Meta(description=text)
