"""The last analysis of a run, kept whole beside its measurements: what `moegeo report` shows."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli import __version__
from moegeo_cli.records import RunRecord, from_dict, to_dict
from moegeo_cli.store.cache import FOLDER, Store, entry_key


def _key(path: Path) -> str:
    """By the folder's name: a store is moved with its run, and shared with its checkpoints."""
    return f"report-{entry_key({'of': path.resolve().name, 'moegeo': __version__})}"


def keep_report(store: Store, path: Path | str, record: RunRecord) -> None:
    """Keep what an analysis found, in the place of the one before."""
    store.save_json(_key(Path(path)), to_dict(record))


def load_report(path: Path, place: Path | str | None) -> RunRecord | None:
    """The last analysis of a run or a checkpoint; None where none is kept.

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
