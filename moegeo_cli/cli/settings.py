"""Settings from `moegeo.toml` or `[tool.moegeo]` in `pyproject.toml`, nearest folder first.

A table of defaults for options, named as on the command line (`fail-on = "failing"`), with
sub-tables for one command's own (`[tool.moegeo.compare]`). `thresholds` is a table that the
verdict reads. The command line wins over all of it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError

COMMANDS = ("analyze", "compare", "experts", "inspect", "invariance", "probe", "routing")
SHARED = {
    "probe", "config", "baseline", "fisher", "unit", "exact", "reference", "policy", "framework",
    "device", "device_map", "dtype", "batch_size", "max_tokens", "layers", "stream", "memory",
    "steps", "latest", "seed", "format", "output", "fail_on", "no_cache", "cache_dir",
    "verify_fingerprint",
    "by", "force", "thresholds", "model", "router", "top_k", "scoring", "captures",
    "tokens", "weights", "rank", "jacobian_tokens", "directions", "verify", "matrices",
    "pairs", "generate",
}  # fmt: skip

FLAGS = {"exact", "latest", "no_cache", "force"}


def find_settings(start: Path | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The nearest settings file above `start`, and its table.

    Raises:
        UsageError: the file is not TOML.
    """
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        for name in ("moegeo.toml", "pyproject.toml"):
            path = folder / name
            if not path.is_file():
                continue
            try:
                document = tomllib.loads(path.read_text())
            except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                if name == "pyproject.toml" and not _mentions_us(path):
                    continue  # not ours to complain about
                # A gate that stands in it must not vanish without a word.
                raise UsageError(f"{path} cannot be read as TOML", found=str(error)) from error
            tool = document.get("tool", {})
            table = document if name == "moegeo.toml" else (
                tool.get("moegeo") if isinstance(tool, dict) else None
            )  # fmt: skip
            if isinstance(table, dict):
                return path, table
            if table is not None:
                raise UsageError(f"tool.moegeo in {path} is not a table", found=repr(table))
    return None


def _mentions_us(path: Path) -> bool:
    try:
        return b"moegeo" in path.read_bytes()
    except OSError:
        return False


def load_defaults(start: Path | None = None) -> dict[str, Any]:
    """Defaults by command, in the form that click takes.

    Raises:
        UsageError: a setting that no option has.
    """
    found = find_settings(start)
    if found is None:
        return {}
    path, table = found
    shared = {key.replace("-", "_"): v for key, v in table.items() if key not in COMMANDS}
    _refuse_unknown(path, set(shared))
    shared.pop("thresholds", None)
    defaults: dict[str, Any] = {}
    for command in COMMANDS:
        own_table = table.get(command)
        # `probe = "file"` is the option, `[probe]` the command's own table.
        if command == "probe" and isinstance(own_table, str):
            shared["probe"] = own_table
    for command in COMMANDS:
        own_table = table.get(command)
        own = own_table if isinstance(own_table, dict) else {}
        own = {key.replace("-", "_"): value for key, value in own.items()}
        _refuse_unknown(path, set(own))
        own = {**shared, **own}
        _refuse_misplaced(path, own)
        if "format" in own:  # a word that Python has for something else
            own["output_format"] = own.pop("format")
        defaults[command] = own
    return defaults


def _refuse_misplaced(path: Path, own: dict[str, Any]) -> None:
    """What an option would take for something else: true is 1, and a table is no value."""
    for name, value in own.items():
        if isinstance(value, bool) and name not in FLAGS:
            raise UsageError(
                f"{name.replace('_', '-')} in {path.name} is not a yes or no",
                found=str(value).lower(),
            )
        if isinstance(value, dict | list):
            raise UsageError(
                f"{name.replace('_', '-')} in {path.name} is not one value",
                found=repr(value)[:80],
                hint="thresholds stand at the top, in [tool.moegeo.thresholds]"
                if name == "thresholds"
                else None,
            )


def threshold_overrides(start: Path | None = None) -> dict[str, Any]:
    """The `thresholds` table of the settings file, empty where there is none."""
    found = find_settings(start)
    table = found[1].get("thresholds", {}) if found else {}
    if not isinstance(table, dict):
        raise UsageError("thresholds in the settings file is not a table")
    return table


def _refuse_unknown(path: Path, names: set[str]) -> None:
    unknown = sorted(names - SHARED)
    if unknown:
        raise UsageError(
            f"{path.name} has a setting that moegeo does not know",
            found=", ".join(unknown),
            hint="settings are named as options are: moegeo analyze --help",
        )
