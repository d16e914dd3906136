"""The file names of an adapter."""

from __future__ import annotations

from pathlib import Path

from moegeo_cli.checkpoints.adapters.config import CONFIG
from moegeo_cli.checkpoints.safe_files import is_there

ADAPTER = "adapter"  # the layout of a folder that holds an adapter and no other weights
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # in peft's own order
GIVE_BASE = "give the base model's folder, with its weights: --config PATH"


def adapter_file(folder: Path) -> Path | None:
    """The file with an adapter's tensors in a folder; None where there is none."""
    return next((folder / name for name in ADAPTER_FILES if is_there(folder / name)), None)


def has_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter's tensors or its config, by file names."""
    return adapter_file(folder) is not None or is_there(folder / CONFIG)
