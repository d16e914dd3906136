"""Find the base model of an adapter that is saved without it."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.checkpoints.adapters.config import CONFIG, read_adapter_config
from moegeo_cli.checkpoints.adapters.files import ADAPTER, adapter_file
from moegeo_cli.checkpoints.hub_cache import advise_missing
from moegeo_cli.checkpoints.opening import detect_layout
from moegeo_cli.errors import PathError, UnsupportedLayoutError

GIVE_BASE = "give the base model's folder, with its weights: --config PATH"


def find_base(folder: Path, given: Path | None = None) -> Path:
    """Find the folder of an adapter's base model.

    It is the folder that `--config` names, if that holds weights. Otherwise it is the path in
    adapter_config.json: absolute, or relative to the adapter's folder, the folder above it, or the
    current folder.

    Args:
        folder: the adapter's folder.
        given: the folder that `--config` names.

    Raises:
        PathError: no such folder, or no base model is named.
        UnsupportedLayoutError: the path fits several folders, or the base model has no weights or
            is an adapter itself.
        IncompleteCheckpointError: adapter_config.json is absent or truncated.
    """
    if given is not None and _holds_weights(given):
        return _check_base(folder, given)
    named = read_adapter_config(folder).base
    if named is None:
        raise PathError(
            f"{folder.name} is an adapter, and its {CONFIG} names no base model",
            hint=GIVE_BASE,
        )
    tried = [
        place / Path(named).expanduser() for place in (folder, folder.absolute().parent, Path())
    ]
    held = {place.resolve(): place for place in tried if _is_folder(place)}
    if len(held) > 1:
        raise UnsupportedLayoutError(
            f"{folder.name} is an adapter, and the name of its base model fits several folders",
            found=", ".join(str(place) for place in held),
            hint=GIVE_BASE,
        )
    if not held:
        raise PathError(
            f"{folder.name} is an adapter, and its base model is not here: {named}",
            found=f"{CONFIG} names it",
            hint=f"{GIVE_BASE}; {advise_missing(Path(named))}",
            context={"base": named},
        )
    return _check_base(folder, next(iter(held.values())))


def _check_base(folder: Path, base: Path) -> Path:
    """`base`, checked to hold weights and no adapter."""
    if not _holds_weights(base):
        raise UnsupportedLayoutError(
            f"{folder.name} is an adapter, and its base model {base} holds no weights",
            hint=GIVE_BASE,
        )
    if adapter_file(base) is not None:
        raise UnsupportedLayoutError(
            f"{folder.name} is an adapter, and its base model {base} holds an adapter itself",
            found="nothing says in which order to merge the two",
            hint="merge the first one with peft (merge_and_unload), and give that with --config",
        )
    return base


def _holds_weights(folder: Path) -> bool:
    return detect_layout(folder) not in (None, ADAPTER)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
