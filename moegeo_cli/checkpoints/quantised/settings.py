"""How a checkpoint says that it was quantised: in config.json, or in a file beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moegeo_cli.checkpoints.folders import config_file
from moegeo_cli.checkpoints.headers import is_there
from moegeo_cli.checkpoints.indexes import read_json
from moegeo_cli.errors import MoegeoError

MAX_SETTINGS_BYTES = 16_000_000
# Files beside config.json in which tools keep how they quantised.
SIDE_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")


def read_settings(config_folder: Path, folder: Path) -> dict[str, Any]:
    """How a checkpoint says that it was quantised; {} where it does not."""
    found: dict[str, Any] = {}
    for place, keys in [
        *((folder / name, ()) for name in reversed(SIDE_FILES)),
        (config_file(config_folder), ("quantization", "compression_config", "quantization_config")),
    ]:
        if not is_there(place):
            continue
        try:
            document = read_json(place, MAX_SETTINGS_BYTES)
        except MoegeoError:
            continue  # whoever needs this file says what is wrong with it
        if not isinstance(document, dict):
            continue
        for level in (document, document.get("text_config")) if keys else ({"": document},):
            for key in keys or ("",):
                if isinstance(level, dict) and isinstance(level.get(key), dict):
                    found |= level[key]
    return found
