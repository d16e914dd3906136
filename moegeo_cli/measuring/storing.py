"""Open the store of a run: find the folder in which its measurements are kept."""

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
    """Open the store of a run.

    Nothing is stored without `cache`, or for a user's code that cannot be identified by a hash.

    Args:
        folder: the run.
        cache: whether to store measurements.
        cache_dir: the folder of the store; None for .moegeo in the run.
        models: which model the run has.
    """
    if cache and models.store_problem is not None:
        store = Store(None)
        store.problem = models.store_problem
        return store
    return Store(_store_folder(folder, cache_dir) if cache else None)


def _store_folder(folder: RunFolder, cache_dir: Path | str | None) -> Path:
    """The folder of the store: in the run, also for a single checkpoint of a run."""
    if cache_dir is not None:
        return Path(cache_dir)
    if folder.is_single:
        above = folder.path.resolve().parent
        siblings = [p for p in above.iterdir() if p != folder.path.resolve() and detect_layout(p)]
        if siblings and folder.newest.step is not None:
            return above / FOLDER
    return folder.path / FOLDER
