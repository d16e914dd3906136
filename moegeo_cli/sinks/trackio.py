"""trackio: rows in its local database, which `trackio show` displays."""

from __future__ import annotations

from collections.abc import Sequence

from moegeo_cli.scalars import LAST, Point

DEFAULT_PLACE = "moegeo"
EXTRA = "trackio"
ALL_CHECKPOINTS = True
SYNTAX = "trackio[:PROJECT]"


def prepare(where: str) -> None:
    """Check that the library is installed."""
    import trackio  # noqa: F401


def write(where: str, run: str, points: Sequence[Point]) -> int:
    """Add one row per point, directly: `trackio.init` would start a server."""
    from trackio.sqlite_storage import SQLiteStorage

    there = {row["step"] for row in SQLiteStorage.get_logs(where, run) if LAST in row}
    new = [p for p in points if p.step not in there]
    SQLiteStorage.bulk_log(where, run, [dict(p.values) for p in new], [p.step for p in new])
    return len(new)
