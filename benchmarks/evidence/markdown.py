"""Format tables and numbers for docs/results/evidence.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table_of(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def percent(fraction: float) -> str:
    """A share of training in words."""
    return f"{fraction:.0%}"
