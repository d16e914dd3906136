"""docs/reference/options.md: `python -m tests.options_page` writes it from the declarations."""

from __future__ import annotations

import inspect
import types
import typing
from pathlib import Path
from typing import Any, Literal

import moegeo_cli
from moegeo_cli import keywords as k
from moegeo_cli import registry
from moegeo_cli.options import PROBE_COMMANDS

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "options.md"
COMMANDS = {command.name: command.groups for command in registry.commands().values()}
COMMANDS |= {f"probe {name}": groups for name, groups in PROBE_COMMANDS.items()}
# What the functions in Python take.
IN_PYTHON = [k.declared(command.options) for command in registry.commands().values()]
SHORT = {"Callable": "callable", "Mapping": "table", "Sequence": "list of int"}
HEAD = """# Options

`python -m tests.options_page` writes this page from `moegeo_cli/options/`, where every option is
declared once. The command line, `moegeo.toml` (and `[tool.moegeo]` in `pyproject.toml`) and the
Python API take the same options. In a settings file an option has the name of its flag without the
dashes. `moegeo COMMAND --help` shows those of one command. An option without a name in the second
column exists on the command line and in settings files only.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for panel in k.PANELS:
        parts.append(f"\n## {panel.partition(' (')[0]}\n\n")
        parts.append("| flag | in Python | takes | default | what it does | commands |\n")
        parts.append("|---|---|---|---|---|---|\n")
        seen: set[tuple[str, str]] = set()
        for groups in COMMANDS.values():
            for group in groups:
                for name, option in k.declared(group).items():
                    if option.panel == panel and (name, option.help) not in seen:
                        seen.add((name, option.help))
                        parts.append(_row(name, option))
    parts.append(
        "\n## Python\n\n`import moegeo`, then one of these functions. "
        "`moegeo.Session(**options)` takes\noptions once, and has the same functions.\n"
    )
    for name in registry.commands():
        signature = inspect.signature(getattr(moegeo_cli, name))
        own = [
            str(p.replace(annotation=inspect.Parameter.empty))
            for p in signature.parameters.values()
            if p.kind is p.POSITIONAL_OR_KEYWORD
        ]
        doc = inspect.getdoc(getattr(moegeo_cli, name)) or ""
        parts.append(f"\n### `{name}({', '.join(own)}, **options)`\n\n{_prose(doc)}\n")
    return "".join(parts)


def _row(name: str, option: k.Option) -> str:
    users = {
        command: _takes(group, name)
        for command, groups in COMMANDS.items()
        for group in groups
        if name in k.declared(group) and k.declared(group)[name].help == option.help
    }
    flags = "in the settings file" if option.settings_file_only else ", ".join(
        f"`{f}`" for f in option.flags or (k.flag(name, option),)
    )  # fmt: skip
    least = "" if option.minimum is None else f", at least {option.minimum}"
    known = option.default not in (None, ()) and not isinstance(option.default, bool)
    default = f"`{str(option.default).removesuffix('.0')}`" if known else ""
    in_python = f"`{name}`" if any(option in known.values() for known in IN_PYTHON) else ""
    takes = max(users.values(), key=len) + least
    cells = (flags, in_python, takes, default, option.help, ", ".join(users))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _takes(group: Any, name: str) -> str:
    words = k.choices_of(group, name)
    return ", ".join(f"`{word}`" for word in words) or _kind(k.type_of(group, name))


def _kind(kind: Any) -> str:
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{word}`" for word in inside)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(k) for k in inside if k is not types.NoneType)
    if inside == (str,):
        return "list of text"
    name = getattr(origin or kind, "__name__", str(kind))
    return {"Path": "path", "str": "text", "bool": "yes or no", "int": "whole number",
            "float": "number", **SHORT}.get(name, name)  # fmt: skip


def _prose(doc: str) -> str:
    """What a docstring says before its options, its sections as lists."""
    lines = doc.partition("\nOptions:")[0].rstrip().splitlines()
    found, named = [], False
    for line in lines:
        if line.endswith(":") and not line.startswith(" "):
            found.append(f"**{line.removesuffix(':')}**\n")
            named = line != "Returns:"
        elif line.startswith("        ") or (line.startswith("    ") and found[-1][:2] == "- "
                                             and not named):  # fmt: skip
            found[-1] += " " + line.strip()
        elif line.startswith("    "):
            found.append(f"- {line.strip()}")
        else:
            found.append(line)
    return "\n".join(found)


if __name__ == "__main__":
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
