"""Store the last analysis of a run in its store, for `moegeo report`."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli import __version__
from moegeo_cli.records import RunRecord, from_dict, to_dict
from moegeo_cli.store.cache import FOLDER, Store, entry_key


def _key(path: Path) -> str:
    """The key of a run's report. It uses only the folder's name, because runs are moved."""
    return f"report-{entry_key({'of': path.resolve().name, 'moegeo': __version__})}"


def keep_report(store: Store, path: Path | str, record: RunRecord) -> None:
    """Store the record of an analysis; it replaces the last one."""
    store.save_json(_key(Path(path)), to_dict(record))


def load_report(path: Path, place: Path | str | None) -> RunRecord | None:
    """The last analysis of a run or a checkpoint; None if none is stored.

    Args:
        path: the run or checkpoint.
        place: the folder of its store; None for .moegeo in the run or above the checkpoint.
    """
    own = (path / FOLDER, path.resolve().parent / FOLDER)
    for folder in own if place is None else (Path(place),):
        try:
            return from_dict(RunRecord, Store(folder).load_json(_key(path)))
        except ValueError:
            continue
    return None
