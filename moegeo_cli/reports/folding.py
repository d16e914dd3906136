"""Merges sentences that differ only in their counts: each count becomes a range."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moegeo_cli.reports.escaping import LIMIT, clean

_COUNT = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")
_MAX_REASON = 100_000  # characters of a reason that names every router


def pattern(words: str) -> str:
    """A sentence with `#` for each count."""
    return _COUNT.sub("#", words)


def fold(sentences: Sequence[str]) -> str:
    """Merge sentences of the same pattern: "3 experts", "5 experts" is "3 to 5 experts"."""
    columns = zip(*(_COUNT.findall(words) for words in sentences), strict=True)
    ranges = []
    for counts in columns:
        ranked = sorted(set(counts), key=lambda count: float(count.replace(",", "")))
        ranges.append(ranked[0] if len(ranked) == 1 else f"{ranked[0]} to {ranked[-1]}")
    return _COUNT.sub(lambda _: ranges.pop(0), sentences[0])


def fold_reason(reason: str) -> str:
    """Merge the parts of a reason, which are separated by `;`, if they have the same pattern."""
    by_pattern: dict[str, list[str]] = {}
    for part in clean(reason, _MAX_REASON).split("; "):
        by_pattern.setdefault(pattern(part), []).append(part)
    return clean("; ".join(fold(parts) for parts in by_pattern.values()), LIMIT)
