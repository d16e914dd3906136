"""Read config.json and trainer_state.json of one checkpoint's folder.

`Checkpoint` calls these functions. They raise the errors for paths that are no checkpoint folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.adapters.base_model import find_base
from moegeo_cli.checkpoints.adapters.files import ADAPTER
from moegeo_cli.checkpoints.hub_cache import advise_missing
from moegeo_cli.checkpoints.indexes import read_json, read_whole
from moegeo_cli.checkpoints.layouts import DISTRIBUTED, FSDP_PART, find_gguf
from moegeo_cli.checkpoints.safe_files import is_there, list_names, parse_json
from moegeo_cli.errors import (
    IncompleteCheckpointError,
    MoegeoError,
    PathError,
    UnsupportedLayoutError,
)

MAX_CONFIG_BYTES = 16_000_000
MAX_STATE_BYTES = 512_000_000  # log_history grows with the run


def config_file(checkpoint: Path) -> Path:
    """The path of a checkpoint's config.json: in its folder, or beside its single file."""
    return (checkpoint.parent if checkpoint.is_file() else checkpoint) / "config.json"


def find_given_config(path: Path | str) -> Path:
    """The folder of the config.json that `--config` names.

    Args:
        path: a config.json, or a folder that holds one.

    Raises:
        PathError: `path` is neither.
    """
    given = Path(path).expanduser()
    folder = given.parent if given.name == "config.json" else given
    if not is_there(folder / "config.json"):
        raise PathError(
            f"--config {given} is neither a config.json nor a folder with one",
            found=", ".join(list_names(folder)[:8]) or "nothing",
            hint="give the folder of the model that the training started from, for instance",
        )
    return folder


def find_config(folder: Path, given: Path | None, layout: str | None) -> Path:
    """The folder that holds a checkpoint's config.json.

    The first that has one: the checkpoint's folder, the folder that `--config` names, and for a
    torch.distributed checkpoint the run's folder above it (its writers add no config.json).
    For an adapter without its base model beside it: the folder of the base model.

    Args:
        folder: the checkpoint.
        given: the folder that `--config` names.
        layout: the result of `detect_layout(folder)`.

    Returns:
        `folder` where no config.json is found; reading it then raises.

    Raises: the same errors as `find_base`, for an adapter without its base model.
    """
    if layout == ADAPTER:
        return find_base(folder, given)
    if is_there(folder / "config.json"):
        return folder
    if given is not None:
        return given
    if layout == DISTRIBUTED:
        above = folder.absolute().parents[: 1 + folder.name.startswith(FSDP_PART)]
        return next((place for place in above if is_there(place / "config.json")), folder)
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """Read and parse a checkpoint's config.json; {} for a single file without one.

    Raises:
        IncompleteCheckpointError: config.json is absent, truncated, or not an object.
    """
    raw = config_bytes(folder)
    return {} if raw is None else parse_config(raw, folder)


def config_bytes(folder: Path) -> bytes | None:
    """The bytes of a checkpoint's config.json; None for a single file without one.

    Raises:
        IncompleteCheckpointError: a folder without config.json, or config.json is too long.
    """
    path = config_file(folder)
    if is_there(path):
        return read_whole(path, MAX_CONFIG_BYTES)
    if folder.is_file():
        return None
    hint = "copy the model's config.json beside the weights, or give one with --config"
    if find_gguf(folder) is not None:
        hint = "give config.json and tokenizer of the model that the GGUF was made from: --config"
    raise IncompleteCheckpointError(
        f"{folder.name} has no config.json",
        hint=hint,
        context={"path": str(folder)},
    )


def parse_config(raw: bytes, folder: Path) -> dict[str, Any]:
    """Parse the bytes of a checkpoint's config.json.

    Raises:
        IncompleteCheckpointError: they are truncated, or not an object.
    """
    document = parse_json(raw, config_file(folder))
    if not isinstance(document, dict):
        raise IncompleteCheckpointError(
            "config.json is not an object", found=type(document).__name__
        )
    return document


def read_trainer_state(folder: Path) -> dict[str, Any] | None:
    """Read and parse trainer_state.json; None where there is none.

    Raises:
        IncompleteCheckpointError: the file is truncated or not an object.
    """
    path = folder / "trainer_state.json"
    if not is_there(path):
        return None
    document = read_json(path, MAX_STATE_BYTES)
    if not isinstance(document, dict):
        raise IncompleteCheckpointError(
            "trainer_state.json is not an object", found=type(document).__name__
        )
    return document


def list_folder(folder: Path) -> list[Path]:
    """Entries of a folder without hidden ones, sorted by name.

    Raises:
        PathError: the path is absent, a file, a loop of links, or unreadable.
        UnsupportedLayoutError: the path is a GGUF file.
    """
    try:
        if not folder.is_dir():
            raise _no_folder_error(folder)
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PathError(f"{folder} cannot be read", found=reason) from None


def _no_folder_error(path: Path) -> MoegeoError:
    """The error for a path that is absent or a file."""
    if path.suffix == ".gguf" and is_there(path):
        return UnsupportedLayoutError(
            f"{path} is a GGUF file, and moegeo takes folders",
            hint=f"give its folder, {path.absolute().parent}, with the config.json and the "
            "tokenizer of the model that it was made from, there or with --config",
        )
    if is_there(path):
        return PathError(
            f"{path} is a file", hint=f"give the checkpoint's folder: {path.absolute().parent}"
        )
    if path.is_symlink():
        return PathError(f"{path} is a broken link", hint="check the link's target")
    return PathError(f"{path} does not exist", hint=advise_missing(path))
