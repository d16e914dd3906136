"""How a checkpoint says that it was quantised: in config.json, or in a file beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.headers import is_there
from moegeo_cli.checkpoints.indexes import read_json
from moegeo_cli.errors import MoegeoError

MAX_SETTINGS_BYTES = 16_000_000
# Files beside config.json in which tools keep how they quantised.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
KEYS = ("quantization", "compression_config", "quantization_config")


def read_settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How a checkpoint says that it was quantised; {} where it does not.

    Args:
        config: the parsed config.json, which wins over files beside it.
        folder: of the weights.
    """
    found: dict[str, Any] = {}
    for part in (*_side_files(folder), *(_held(config))):
        found |= part
    return found


def _side_files(folder: Path) -> Iterator[dict[str, Any]]:
    for name in reversed(SIDE_FILES):
        if not is_there(folder / name):
            continue
        try:
            document = read_json(folder / name, MAX_SETTINGS_BYTES)
        except MoegeoError:
            continue  # whoever needs this file says what is wrong with it
        if isinstance(document, dict):
            yield document


def _held(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for level in (config, config.get("text_config")):
        for key in KEYS:
            if isinstance(level, Mapping) and isinstance(level.get(key), dict):
                yield level[key]
