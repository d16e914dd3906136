"""JSON documents, number by number."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any


def numbers(found: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a document with its path."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from numbers(value, f"{path}.{key}")
    elif isinstance(found, list):
        for place, value in enumerate(found):
            yield from numbers(value, f"{path}[{place}]")
    else:
        yield path, found


def assert_equal(one: Any, two: Any, but: str = r"replay\.notes", tolerance: float = 1e-6) -> None:
    """Equal within a relative tolerance, apart from the paths that `but` matches."""
    ours, theirs = (
        {path: value for path, value in numbers(d) if not re.search(but, path)} for d in (one, two)
    )
    assert ours.keys() == theirs.keys()
    assert len(ours) > 200
    for path, value in ours.items():
        if isinstance(value, float):
            assert math.isclose(value, theirs[path], rel_tol=tolerance, abs_tol=1e-12), path
        else:
            assert value == theirs[path], path
