"""Reads settings from the nearest `moegeo.toml`, or `[tool.moegeo]` in `pyproject.toml`.

Settings are defaults for options. They have the names of the flags (`fail-on = "failing"`).
Sub-tables hold settings of one command (`[tool.moegeo.compare]`, `[tool.moegeo.probe.build]`).
`thresholds` is a table for the verdict. The command line overrides settings.

Every option is a setting: the known names are read from the commands.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.keywords import declared, flag
from moegeo_cli.options import PROBE_COMMANDS
from moegeo_cli.registry import commands

Table = Mapping[str, Any]
# Settings that only the tables of the `probe` commands hold.
PROBE_ONLY = {
    name
    for groups in PROBE_COMMANDS.values()
    for group in groups
    for name, option in declared(group).items()
    if option.own_table
}


def find_settings(start: Path | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The settings file nearest to `start`, in it or above it.

    Args:
        start: a folder; None for the current one.

    Returns:
        The file's path and its table; None if there is no such file.

    Raises:
        UsageError: the file is not TOML, or `tool.moegeo` is not a table.
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
                if name == "pyproject.toml" and not _mentions_moegeo(path):
                    continue  # the file has no settings of moegeo
                # The file may set fail-on, which must not be ignored silently.
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


def _mentions_moegeo(path: Path) -> bool:
    try:
        return b"moegeo" in path.read_bytes()
    except OSError:
        return False


def load_defaults(group: Any, start: Path | None = None) -> dict[str, Any]:
    """Defaults by command, in the form of click's `default_map`.

    Args:
        group: the click group of all commands.
        start: the folder to search first; None for the current one.

    Raises:
        UsageError: an unknown setting, or a value that does not fit the option.
    """
    found = find_settings(start)
    if found is None:
        return {}
    path, table = found
    commands: Table = group.commands
    # `probe = "file"` sets the option; `[probe]` is the table of the command.
    own = {name: table[name] for name in commands if isinstance(table.get(name), dict)}
    shared = _normalised(table, set(own) | {"thresholds"})
    _check(path, shared, [option for c in commands.values() for option in _options(c)])
    return {
        name: _defaults(
            path, command, shared, own.get(name, {}), PROBE_ONLY if name == "probe" else set()
        )
        for name, command in commands.items()
    }


def _defaults(
    path: Path, command: Any, above: Table, table: Table, private: set[str]
) -> dict[str, Any]:
    """Defaults of one command: from its own table, else from the tables above it."""
    commands: Table = getattr(command, "commands", {})
    own = {name: table[name] for name in commands if isinstance(table.get(name), dict)}
    values = _normalised(table, set(own))
    _check(path, values, list(_options(command)))
    values = {**{k: v for k, v in above.items() if k not in private}, **values}
    if commands:
        return {
            name: _defaults(path, part, values, own.get(name, {}), set())
            for name, part in commands.items()
        }
    # Values are passed as text, so that click checks them as on the command line.
    return {
        option.name: _as_typed(value, getattr(option, "multiple", False))
        for option in _options(command)
        if (value := values.get(_setting(option))) is not None
    }


def _as_typed(value: Any, repeatable: bool) -> Any:
    if repeatable:
        return value if isinstance(value, list) else [str(value)]
    return value if isinstance(value, bool) else str(value)


def _normalised(table: Table, without: set[str]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items() if key not in without}


def _options(command: Any) -> Iterator[Any]:
    """The options of a command, or of all commands of a group."""
    for part in getattr(command, "commands", {}).values():
        yield from _options(part)
    yield from (
        option
        for option in command.params
        if option.param_type_name == "option" and option.expose_value and not option.is_eager
    )


def _setting(option: Any) -> str:
    """The name of an option in a settings file: its long flag, with underscores."""
    name: str = next(name for name in option.opts if name.startswith("--"))
    return name.removeprefix("--").replace("-", "_")


def _check(path: Path, values: Table, options: list[Any]) -> None:
    """Check that every name is an option's, and that the value's type fits it.

    Raises:
        UsageError: an unknown name, or a value that does not fit.
    """
    flags = {_setting(option) for option in options if option.is_bool_flag}
    others = {_setting(option) for option in options if not option.is_bool_flag}
    repeatable = {_setting(option) for option in options if getattr(option, "multiple", False)}
    unknown = sorted(set(values) - flags - others - {"thresholds"})
    if unknown:
        raise UsageError(
            f"{path.name} has a setting that moegeo does not know",
            found=", ".join(unknown),
            hint="settings have the names of options: moegeo analyze --help",
        )
    for name, value in values.items():
        shown = name.replace("_", "-")
        if name in repeatable and isinstance(value, list) and all(type(v) is str for v in value):
            continue
        if isinstance(value, dict | list):
            raise UsageError(
                f"{shown} in {path.name} must be a single value",
                found=repr(value)[:80],
                hint="thresholds belong in the table [tool.moegeo.thresholds]"
                if name == "thresholds"
                else None,
            )
        if isinstance(value, bool) and name not in flags:
            raise UsageError(
                f"{shown} in {path.name} does not take true or false", found=str(value).lower()
            )
        if not isinstance(value, bool) and name not in others:
            raise UsageError(
                f"{shown} in {path.name} must be true or false",
                found=repr(value)[:80],
                hint=f"{shown} = true",
            )


def settings_source(error: Any) -> str | None:
    """Name of the settings file that a refused value comes from; None for the command line."""
    context, option = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or option is None:
        return None
    source = context.get_parameter_source(option.name)
    found = find_settings() if source is not None and source.name == "DEFAULT_MAP" else None
    return None if found is None else found[0].name


def threshold_overrides(start: Path | None = None) -> dict[str, Any]:
    """The `thresholds` table of the settings file; empty if there is none.

    A limit without a source of its own gets the file as its source.

    Raises:
        UsageError: `thresholds` is not a table.
    """
    from moegeo_cli.verdict.thresholds import OWN

    found = find_settings(start)
    if found is None:
        return {}
    path, settings = found
    table = settings.get("thresholds", {})
    if not isinstance(table, dict):
        raise UsageError("thresholds in the settings file is not a table")
    source = f"{OWN} in {path.name}"
    return {
        name: {"source": source, **row}
        if isinstance(row, dict)
        else {"value": row, "source": source}
        for name, row in table.items()
    }


def settings_in_force(command: str, defaults: Mapping[str, Any]) -> str:
    """One line with the settings that a settings file gives a command; "" if there are none.

    Args:
        command: the command's name.
        defaults: defaults of all commands, from `load_defaults`.
    """
    found = find_settings()
    if found is None:
        return ""
    groups = commands()[command].groups if command in commands() else ()
    options = {name: option for group in groups for name, option in declared(group).items()}
    words = [
        f"{flag(name, options[name])[2:] if name in options else name.replace('_', '-')} = {value}"
        for name, value in defaults.get(command, {}).items()
        if not isinstance(value, dict)
    ]
    if "thresholds" in options:
        words += [f"thresholds.{name}" for name in found[1].get("thresholds", {})]
    return f"settings of {found[0].name}: {', '.join(words)}" if words else ""
