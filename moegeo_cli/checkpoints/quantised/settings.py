"""Read a checkpoint's quantisation settings from config.json or from a file beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.indexes import read_json
from moegeo_cli.checkpoints.safe_files import is_there
from moegeo_cli.errors import MoegeoError

MAX_SETTINGS_BYTES = 16_000_000
# Files beside config.json in which tools save their quantisation settings.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
KEYS = ("quantization", "compression_config", "quantization_config")


def read_settings(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Read a checkpoint's quantisation settings; {} where there are none.

    Args:
        config: the parsed config.json. Its settings win over those of files beside it.
        folder: the folder of the weights.
    """
    found: dict[str, Any] = {}
    for part in (*_side_files(folder), *_in_config(config)):
        found |= part
    return found


def _side_files(folder: Path) -> Iterator[dict[str, Any]]:
    for name in reversed(SIDE_FILES):
        if not is_there(folder / name):
            continue
        try:
            document = read_json(folder / name, MAX_SETTINGS_BYTES)
        except MoegeoError:
            continue  # where the settings are needed, dequantising raises a clear error
        if isinstance(document, dict):
            yield document


def _in_config(config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for level in (config, config.get("text_config")):
        for key in KEYS:
            if isinstance(level, Mapping) and isinstance(level.get(key), dict):
                yield level[key]
