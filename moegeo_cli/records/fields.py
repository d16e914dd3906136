"""How a field of a record says what it holds: in words, by bounds, and whether files must have it.

Written once, beside the field: reading a file checks bounds and words (`convert`), and the JSON
schemas of the formats are derived from them (`schema`).
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

# Files that an earlier moegeo wrote at the same version lack this field.
ADDED_LATER = Meta(extra_json_schema={"x-later": True})
# JSON leaves the field out where it is None.
OMIT_IF_NONE = Meta(extra_json_schema={"x-where-due": True})

Count = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Values = tuple[float | None, ...]  # by expert; null for a value that is not there or not finite
Matrix = tuple[tuple[float | None, ...], ...]  # E × E, by expert


def about(text: str) -> Meta:
    """What a field holds, in words: its description in the JSON schema."""
    return Meta(description=text)
