"""Where the measurements of a run are kept."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.checkpoints.discover import RunFolder
from moegeo_cli.checkpoints.opening import detect_layout
from moegeo_cli.models.given import Models
from moegeo_cli.store.cache import FOLDER, Store

NOT_KEPT = "measurements were not kept: {}"


def open_store(
    folder: RunFolder, cache: bool, cache_dir: Path | str | None, models: Models
) -> Store:
    """The measurements that are kept of a run.

    It keeps nothing without `cache`, and nothing of code that cannot be told again.
    """
    if cache and models.unidentified is not None:
        store = Store(None)
        store.problem = models.unidentified
        return store
    return Store(_store_folder(folder, cache_dir) if cache else None)


def _store_folder(folder: RunFolder, cache_dir: Path | str | None) -> Path:
    """Where measurements are kept: with the run, so that a checkpoint and its run share them."""
    if cache_dir is not None:
        return Path(cache_dir)
    if folder.is_single:
        above = folder.path.resolve().parent
        siblings = [p for p in above.iterdir() if p != folder.path.resolve() and detect_layout(p)]
        if siblings and folder.newest.step is not None:
            return above / FOLDER
    return folder.path / FOLDER
