"""Derives the options of the command line from their declarations in `moegeo_cli.options`."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum, StrEnum
from typing import Annotated, Any

import typer

from moegeo_cli.cli.models import make_importable
from moegeo_cli.cli.settings import threshold_overrides
from moegeo_cli.keywords import PANELS, Option, choices_of, declared, flag, type_of

Command = Callable[..., Any]


def with_options(*groups: Any) -> Callable[[Command], Command]:
    """Turn a function into a Typer command that takes the options of groups.

    The function's last parameters are one dict per group, in the order of `groups`. Each dict
    holds the values of the group's options, in the form that the Python API takes.
    """

    def wrap(function: Command) -> Command:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        own = parameters[: -len(groups)]
        group_names = [p.name for p in parameters[-len(groups) :]]
        options = sorted(
            (o for group in groups for o in _parameters(group)), key=lambda found: found[0]
        )
        # Options are sorted by panel, as the help page shows them.
        signature = inspect.Signature(
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
            + [parameter for _, parameter in options]
        )

        @functools.wraps(function)
        def call(**given: Any) -> Any:
            rest = {p.name: given[p.name] for p in own}
            pairs = zip(group_names, groups, strict=True)
            return function(**rest, **{name: _values(group, given) for name, group in pairs})

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return call

    return wrap


def _parameters(group: Any) -> Iterator[tuple[int, inspect.Parameter]]:
    """For each option that has a flag: the position of its panel, and its parameter."""
    for name, option in declared(group).items():
        if option.settings_file_only:
            continue
        default = not option.default if option.negated else option.default
        typer_option = typer.Option(
            *(option.flags or (flag(name, option),)), help=option.help,
            min=option.minimum, rich_help_panel=option.panel,
        )  # fmt: skip
        kind = _cli_type(group, name, option)
        yield (
            PANELS.index(option.panel),
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, typer_option],
            ),
        )


def _cli_type(group: Any, name: str, option: Option) -> Any:
    """The type of an option on the command line; an enumeration if only some words are allowed."""
    kind, words = type_of(group, name), choices_of(group, name)
    optional = type(None) in typing.get_args(kind)
    enumeration: Any = StrEnum
    found: Any = kind
    if words:
        found = enumeration(name.title().replace("_", ""), {word: word for word in words})
    elif option.cli_type is not None:
        found = option.cli_type
    elif optional:
        [found] = (k for k in typing.get_args(kind) if k is not types.NoneType)
    return found | None if optional else found


def _values(group: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The values of a group's options, in the form that the Python API takes."""
    found: dict[str, Any] = {}
    for name, option in declared(group).items():
        if option.settings_file_only:
            found[name] = threshold_overrides()
            continue
        value = given[name]
        found[name] = value.value if isinstance(value, Enum) else value
        if option.negated:
            found[name] = not value
        if option.importable:
            found[name] = make_importable(value)
    return found
