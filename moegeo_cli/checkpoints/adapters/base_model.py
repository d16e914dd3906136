"""Where the base model of an adapter lies."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.checkpoints.adapters.config import CONFIG, read_adapter_config
from moegeo_cli.checkpoints.adapters.files import ADAPTER, adapter_file
from moegeo_cli.checkpoints.hub_cache import advise_missing
from moegeo_cli.checkpoints.opening import detect_layout
from moegeo_cli.errors import PathError, UnsupportedLayoutError

GIVE_BASE = "give the base model's folder, with its weights: --config PATH"


def find_base(folder: Path, given: Path | None = None) -> Path:
    """The folder of the base model of an adapter that lies alone.

    That is what `--config` gave, where weights are in it; else what adapter_config.json names: an
    absolute path, or one from the adapter's folder, the folder above it, or the current one.

    Args:
        folder: the adapter's.
        given: the folder that `--config` gave.

    Raises:
        PathError: no such folder.
        UnsupportedLayoutError: several, or one that is an adapter itself.
        IncompleteCheckpointError: adapter_config.json is absent or cut.
    """
    if given is not None and _holds_weights(given):
        return _whole(folder, given)
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
    return _whole(folder, next(iter(held.values())))


def _whole(folder: Path, base: Path) -> Path:
    """A base model, which must have weights of its own."""
    if not _holds_weights(base):
        raise UnsupportedLayoutError(
            f"{folder.name} is an adapter, and its base model {base} holds no weights",
            hint=GIVE_BASE,
        )
    if adapter_file(base) is not None:
        raise UnsupportedLayoutError(
            f"{folder.name} is an adapter, and its base model {base} holds an adapter itself",
            found="which of the two came first is not known",
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
