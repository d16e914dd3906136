"""Options: declared once, checked in Python, and the same on every way in."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
import typer.main

import moegeo_cli
from moegeo_cli import Session, keywords, options
from moegeo_cli.cli.app import app
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.commands.routing.settings import RoutingSettings
from moegeo_cli.errors import UsageError
from moegeo_cli.registry import commands, find_command
from moegeo_cli.scorings import all_scorings
from moegeo_cli.session import SessionOptions
from moegeo_cli.settings import Settings, settings_of
from tests.options_page import PAGE, page

CLI = Path(moegeo_cli.__file__).parent / "cli"
GROUPS = {command.name: command.options for command in commands().values()}


def test_the_reference_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.options_page"


@pytest.mark.parametrize("name", GROUPS)
def test_python_and_the_command_line_take_the_same_options(name: str) -> None:
    command: Any = typer.main.get_command(app)
    flags = {o.name for o in command.commands[name].params if o.param_type_name == "option"}
    groups = find_command(name).groups
    declared = {
        n for g in groups for n, o in keywords.declared(g).items() if not o.settings_file_only
    }
    assert flags == declared
    parameters = inspect.signature(getattr(moegeo_cli, name)).parameters
    assert set(keywords.declared(GROUPS[name])) <= set(parameters)
    for option, found in keywords.declared(GROUPS[name]).items():
        assert parameters[option].default == found.default


@pytest.mark.parametrize("name", options.PROBE_COMMANDS)
def test_the_probe_commands_take_the_declared_options(name: str) -> None:
    command: Any = typer.main.get_command(app)
    parameters = command.commands["probe"].commands[name].params
    flags = {o.name for o in parameters if o.param_type_name == "option"}
    assert flags == {n for g in options.PROBE_COMMANDS[name] for n in keywords.declared(g)}


def test_options_are_declared_in_their_folder_alone() -> None:
    made = {file.name for file in CLI.glob("*.py") if "typer.Option(" in file.read_text()}
    # options.py derives them from the declarations; app.py has --version, which is no setting.
    assert made == {"options.py", "app.py"}


def test_the_session_takes_every_option() -> None:
    known = {name for group in GROUPS.values() for name in keywords.declared(group)}
    assert set(keywords.declared(SessionOptions)) == known


@pytest.mark.parametrize("kind", [Settings, ExpertSettings, RoutingSettings])
def test_settings_have_the_options_defaults(kind: Any) -> None:
    declared = keywords.declared(SessionOptions)
    given = {name: option.default for name, option in declared.items()}
    assert settings_of(kind, given) == kind()


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("analyze", {"fisher": "empiric"}, "--fisher is not one of empirical, categorical, adam"),
        ("analyze", {"policy": "none"}, "--policy is not one of calibrated, paper"),
        ("compare", {"by": "time"}, "--by is not one of tokens, step, fraction"),
        ("experts", {"tokens": "some"}, "--tokens is not one of routed, coselected, all"),
        ("experts", {"jacobian_tokens": 1}, "--jacobian-tokens must be at least 2"),
        ("routing", {"pairs": 3}, "--pairs must be at least 16"),
        ("check", {"verify_fingerprint": "no"}, "--verify-fingerprint is not one of sampled, full"),
        ("invariance", {"seed": -1}, "--seed must be at least 0"),
    ],
)
def test_values_are_checked_in_python_too(name: str, given: dict[str, Any], words: str) -> None:
    arguments = ["nowhere"] * (2 if name == "compare" else 1)
    with pytest.raises(UsageError, match=words):
        getattr(moegeo_cli, name)(*arguments, **given)


@pytest.mark.parametrize("called", [moegeo_cli.analyze, Session(seed=1).analyze])
def test_an_unknown_option_is_refused_with_the_nearest_one(called: Any) -> None:
    with pytest.raises(TypeError, match=r"'max_token'\. Did you mean 'max_tokens'"):
        called("nowhere", max_token=3)
    with pytest.raises(TypeError, match=r"Session.*'devise'\. Did you mean 'device'"):
        Session(devise="cpu")


def test_a_session_gives_each_call_the_options_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from moegeo_cli import session

    heard: dict[str, dict[str, Any]] = {}
    for name in GROUPS:
        monkeypatch.setattr(
            session, name, lambda *_, name=name, **given: heard.update({name: given})
        )
    one = Session(device="cpu", quick=True, steps="0,10", rank=4)
    one.analyze("a", device="meta")
    one.check("a")
    one.experts("a")
    one.routing("a")
    one.compare("a", "b")
    one.invariance("a")
    one.inspect("a")
    assert heard == {
        "analyze": {"device": "meta", "steps": "0,10"},
        "check": {"quick": True, "steps": "0,10"},
        "experts": {"device": "cpu", "rank": 4},
        "routing": {"device": "cpu", "steps": "0,10"},
        "compare": {"device": "cpu"},
        "invariance": {"device": "cpu"},
        "inspect": {},
    }
    assert repr(one) == "Session(device='cpu', quick=True, steps='0,10', rank=4)"


def test_every_command_is_a_public_function_and_a_method_of_the_session() -> None:
    for command in commands().values():
        assert getattr(moegeo_cli, command.name) is command.function
        assert callable(getattr(Session, command.name))
    assert set(moegeo_cli.PUBLIC) - set(commands()) == {"Session", "capture_routers"}


def test_help_in_python_names_every_option() -> None:
    for name, group in GROUPS.items():
        text = inspect.getdoc(getattr(moegeo_cli, name)) or ""
        for option, found in keywords.declared(group).items():
            assert f"{option}: {found.help}" in text


def test_the_import_name_offers_the_public_names() -> None:
    import moegeo

    assert sorted(moegeo.__all__) == sorted(moegeo_cli.__all__)
    assert moegeo.analyze is moegeo_cli.analyze
    assert moegeo.__version__ == moegeo_cli.__version__
    assert set(dir(moegeo)) == set(dir(moegeo_cli)) == set(moegeo.__all__)
    with pytest.raises(AttributeError, match="no attribute 'analyse'"):
        _ = moegeo.analyse
    assert (Path(moegeo.__file__).parent / "py.typed").exists()


def test_choices_are_those_of_the_type() -> None:
    assert keywords.literal_choices(typing.Literal["a", "b"] | None) == ("a", "b")
    assert keywords.literal_choices(str | None) == ()


def test_the_help_of_scoring_names_every_scoring() -> None:
    told = keywords.declared(options.Model)["scoring"].help
    assert all(name in told for name in all_scorings())
