"""Every option means the same in a settings file as on the command line, for every command.

The cases are made from the application itself: a new command or option is covered as it is added.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import typer.main

from moegeo_cli.cli.app import app
from moegeo_cli.cli.probe import probe_app
from moegeo_cli.keywords import declared
from moegeo_cli.options import PROBE_COMMANDS
from tests.command import call


@dataclass(frozen=True)
class Case:
    """An option of a command, and a value for it that is not its default."""

    command: tuple[str, ...]
    arguments: int  # that the command requires
    option: str
    flag: bool
    value: str

    @property
    def line(self) -> list[str]:
        """The command with the option on its line."""
        return [*self.bare, f"--{self.option}"] + ([] if self.flag else [self.value])

    @property
    def bare(self) -> list[str]:
        """The command alone."""
        return [*self.command, *["a", "b"][: self.arguments]]

    @property
    def setting(self) -> str:
        """The option as a line of TOML."""
        number = self.value.replace(".", "", 1).isdecimal()
        return f"{self.option} = {self.value if self.flag or number else repr(self.value)}\n"

    def __str__(self) -> str:
        return " ".join([*self.command, self.option, self.value])


def values(option: Any) -> list[str]:
    """Values for an option, by its type: all of an enumeration, one of any other."""
    kind = option.type_descriptor.annotation
    if option.is_bool_flag:
        return ["true"]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind if member != option.default]
    return {int: ["17"], float: ["0.5"], Path: ["some/file.toml"]}.get(kind, ["0,3"])


def cases() -> Iterator[Case]:
    def walk(group: Any, names: tuple[str, ...]) -> Iterator[Case]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, (*names, name))
                continue
            required = sum(p.required for p in command.params if p.param_type_name == "argument")
            for option in command.params:
                if option.param_type_name == "option" and option.name != "help":
                    long = next(o for o in option.opts if o.startswith("--"))[2:]
                    for value in values(option):
                        yield Case((*names, name), required, long, option.is_bool_flag, value)

    yield from walk(typer.main.get_command(app), ())


CASES = list(cases())


@pytest.fixture(scope="module")
def recording() -> tuple[Any, list[dict[str, Any]]]:
    """The command line, whose commands note what they were called with in place of their work."""
    calls: list[dict[str, Any]] = []

    def record(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def instead(*_: Any, **keywords: Any) -> None:
            keywords.pop("context", None)
            calls.append({"command": function.__name__, **keywords})

        return instead

    with pytest.MonkeyPatch.context() as patch:
        for owner in (app, probe_app):
            for command in owner.registered_commands:
                assert command.callback is not None
                patch.setattr(command, "callback", record(command.callback))
        return typer.main.get_command(app), calls


@pytest.fixture
def heard(
    recording: tuple[Any, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    """What the commands of a test were called with."""
    commands, calls = recording
    calls.clear()
    monkeypatch.setattr("moegeo_cli.cli.app.command_line", lambda: commands)
    return calls


def places(case: Case) -> list[tuple[str, str]]:
    """Where the setting may stand: at the top, or in the command's own table, in either file."""
    own = f"[{'.'.join(case.command)}]\n{case.setting}"
    tool = f"[tool.moegeo.{'.'.join(case.command)}]\n{case.setting}"
    found = [("moegeo.toml", own), ("pyproject.toml", tool)]
    groups = PROBE_COMMANDS[case.command[1]] if case.command[0] == "probe" else ()
    alone = {name for g in groups for name, option in declared(g).items() if option.own_table}
    if case.option.replace("-", "_") not in alone:
        found += [
            ("moegeo.toml", case.setting),
            ("pyproject.toml", f"[tool.moegeo]\n{case.setting}"),
        ]
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_option_means_the_same_in_a_settings_file(
    case: Case,
    heard: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, *case.line).code == 0
    assert call(capsys, *case.bare).code == 0
    wanted, default = heard
    assert wanted != default
    for name, text in places(case):
        (tmp_path / name).write_text(text)
        found = call(capsys, *case.bare)
        assert (found.code, found.out) == (0, ""), text
        told = "" if case.command[0] == "probe" else f"settings of {name}: {case.option} = "
        assert found.err[: len(told)] == told, text
        assert heard[-1] == wanted, text
        (tmp_path / name).unlink()


def test_the_cases_are_of_every_command() -> None:
    assert {case.command for case in CASES} == {
        ("analyze",), ("check",), ("compare",), ("inspect",), ("experts",), ("routing",),
        ("invariance",), ("report",), ("explain",), ("demo",), ("watch",), ("probe", "build"),
        ("probe", "show"),
    }  # fmt: skip
    assert {case.option for case in CASES if case.flag} >= {"stream", "latest", "no-cache", "force"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stream = 1", "stream in moegeo.toml must be true or false"),
        ('stream = "true"', "stream in moegeo.toml must be true or false"),
        ("seed = 1.5", "--seed"),
        ('format = "junit"', "the value is set in moegeo.toml"),
        ("[probe]\nstream = true", "does not know"),
        ("[inspect]\nstream = true", "does not know"),
    ],
)
def test_a_setting_that_no_option_takes_is_refused(
    text: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "moegeo.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    found = call(capsys, "experts", tmp_path)
    assert found.code == 2
    assert words in found.err


def test_a_value_of_another_command_may_be_overruled(
    heard: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "moegeo.toml").write_text('format = "junit"\n[experts]\nformat = "json"\n')
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "experts", "a").code == 0
    assert heard[-1]["format"] == "json"
    assert call(capsys, "inspect", "a", "--format", "json").code == 0  # the command line wins
    assert heard[-1]["format"] == "json"
    assert call(capsys, "analyze", "a").code == 0
    assert heard[-1]["format"] == "junit"
