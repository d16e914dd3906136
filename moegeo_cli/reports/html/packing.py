"""Packs values into text: nine bits per value, two values in three characters.

A value is a level from 1 to 510 on its scale. Level 0 is exactly zero, 511 is not known. The page's
script unpacks them (`templates/script.js`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
NOTHING, LOWEST, HIGHEST, UNKNOWN = 0, 1, 510, 511
OCTAVES = 9.0  # ratios go from 2**-9 to 2**9, in steps of 2.5%


def ratio_level(ratio: float | None) -> int:
    """The level of a ratio, such as a load over its fair share."""
    if ratio is None:
        return UNKNOWN
    if ratio <= 0:
        return NOTHING
    along = (math.log2(ratio) + OCTAVES) / (2 * OCTAVES)
    return min(max(round(LOWEST + along * (HIGHEST - LOWEST)), LOWEST), HIGHEST)


def linear_level(value: float | None, low: float, high: float) -> int:
    """The level of a value on a linear scale from `low` to `high`."""
    if value is None:
        return UNKNOWN
    along = (value - low) / (high - low) if high > low else 0.5
    return min(max(round(LOWEST + along * (HIGHEST - LOWEST)), LOWEST), HIGHEST)


def pack(levels: Iterable[int]) -> str:
    """The levels as text."""
    found = list(levels)
    if len(found) % 2:
        found.append(UNKNOWN)
    pairs = ((a << 9) | b for a, b in zip(found[::2], found[1::2], strict=True))
    return "".join(ALPHABET[p >> 12] + ALPHABET[p >> 6 & 63] + ALPHABET[p & 63] for p in pairs)


def spread(count: int, most: int) -> list[int]:
    """Positions of at most `most` of `count` entries, chosen evenly, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def ratios(load: Sequence[float | None] | None, length: int) -> list[int]:
    """Levels of a router's load over its fair share, padded to a length."""
    if load is None:
        return [UNKNOWN] * length
    fair = len(load)
    levels = [ratio_level(None if share is None else share * fair) for share in load]
    return levels + [UNKNOWN] * (length - fair)
