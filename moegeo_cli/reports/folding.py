"""Sentences that are alike but for their counts, told once: each count from least to most."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moegeo_cli.reports.escaping import LIMIT, clean

_COUNT = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_LONGEST = 100_000  # characters of a reason that names every router


def pattern(words: str) -> str:
    """A sentence without its counts."""
    return _COUNT.sub("#", words)


def fold(said: Sequence[str]) -> str:
    """Sentences of one pattern as one."""
    columns = zip(*(_COUNT.findall(words) for words in said), strict=True)
    ranges = []
    for counts in columns:
        ranked = sorted(set(counts), key=lambda count: float(count.replace(",", "")))
        ranges.append(ranked[0] if len(ranked) == 1 else f"{ranked[0]} to {ranked[-1]}")
    return _COUNT.sub(lambda _: ranges.pop(0), said[0])


def fold_reason(reason: str) -> str:
    """A reason of several routers, `;` between them, with those alike told once."""
    alike: dict[str, list[str]] = {}
    for part in clean(reason, _LONGEST).split("; "):
        alike.setdefault(pattern(part), []).append(part)
    return clean("; ".join(fold(parts) for parts in alike.values()), LIMIT)
