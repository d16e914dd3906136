"""trackio: its own database on this machine, as `trackio show` shows it."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.scalars import LAST, Point

WHERE = "moegeo"
EXTRA = "trackio"
PAST = True
SAID = "trackio[:PROJECT]"


def prepare(where: str) -> None:
    """See that the library is there."""
    import trackio  # noqa: F401


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Add a row a point, without the server that its `init` would start."""
    from trackio.sqlite_storage import SQLiteStorage

    there = {row["step"] for row in SQLiteStorage.get_logs(where, run) if LAST in row}
    new = [p for p in points if p.step not in there]
    SQLiteStorage.bulk_log(where, run, [dict(p.values) for p in new], [p.step for p in new])
    return len(new)
