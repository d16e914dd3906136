"""Find downloaded models in the Hugging Face Hub's cache on this machine, for hints in errors.

The cache keeps a model as `models--ORG--NAME/snapshots/HASH`; each snapshot is a checkpoint.
"""

from __future__ import annotations

import re
from pathlib import Path

from moegeo_cli.checkpoints.safe_files import is_there, list_names

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def find_snapshot(folder: Path) -> Path | None:
    """The current snapshot of a model in the cache.

    Args:
        folder: the model's folder, `models--ORG--NAME`.

    Returns:
        The snapshot that the reference `main` names, else the last by name; None where there is
        none.
    """
    snapshots = folder / "snapshots"
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8")[:64].strip()
    except (OSError, ValueError):
        revision = ""
    if re.fullmatch(r"\w+", revision) and is_there(snapshots / revision):
        return snapshots / revision
    held = list_names(snapshots)
    return snapshots / held[-1] if held else None


def advise_missing(path: Path) -> str:
    """The hint for a path that does not exist; it may be a model's name on the Hub."""
    name = path.as_posix()
    if not _NAME.fullmatch(name):
        return "check the path; only a path that begins with hf:// is looked for on the Hub"
    snapshot = find_snapshot(_cache() / f"models--{name.replace('/', '--')}")
    if snapshot is not None:
        return f"the Hub's cache on this machine holds {name}: give {snapshot}"
    return (
        f"check the path; a model of that name on the Hub is hf://{name}, or lies in FOLDER after "
        f"hf download {name} --local-dir FOLDER"
    )


def _cache() -> Path:
    """The folder of huggingface_hub's cache, by its own settings."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)
