"""Options on the command line, derived from their declarations in `moegeo_cli.options`."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum, StrEnum
from typing import Annotated, Any

import typer

from moegeo_cli.cli.models import own_model
from moegeo_cli.cli.settings import threshold_overrides
from moegeo_cli.keywords import PANELS, Option, declared, flag, type_of, words_of

Command = Callable[..., Any]


def with_options(*groups: Any) -> Callable[[Command], Command]:
    """A command of Typer's out of a function with parameters of its own and one for each group.

    The groups' parameters are the last ones, in the same order. Each gets the values of its options
    as the Python API takes them.
    """

    def wrap(function: Command) -> Command:
        parameters = list(inspect.signature(function, eval_str=True).parameters.values())
        own, held = parameters[: -len(groups)], [p.name for p in parameters[-len(groups) :]]
        options = sorted(
            (o for group in groups for o in _parameters(group)), key=lambda found: found[0]
        )
        # The last of a name counts: a file for the payload is an option of one group alone.
        signature = inspect.Signature(
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
            + [parameter for _, parameter in options]
        )

        @functools.wraps(function)
        def call(**given: Any) -> Any:
            rest = {p.name: given[p.name] for p in own}
            values = {name: _values(group, given) for name, group in zip(held, groups, strict=True)}
            return function(**rest, **values)

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return call

    return wrap


def _parameters(group: Any) -> Iterator[tuple[int, inspect.Parameter]]:
    """A parameter for each option that has a flag, with the place of its panel."""
    for name, option in declared(group).items():
        if option.setting:
            continue
        default = not option.default if option.off else option.default
        told = typer.Option(
            *(option.flags or (flag(name, option),)), help=option.help,
            min=option.least, rich_help_panel=option.panel,
        )  # fmt: skip
        kind = _said(group, name, option)
        yield (
            PANELS.index(option.panel),
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, told],
            ),
        )


def _said(group: Any, name: str, option: Option) -> Any:
    """An option's type on the command line: one form, and an enumeration for a choice of words."""
    kind, words = type_of(group, name), words_of(group, name)
    optional = type(None) in typing.get_args(kind)
    enumeration: Any = StrEnum
    found: Any = kind
    if words:
        found = enumeration(name.title().replace("_", ""), {word: word for word in words})
    elif option.said is not None:
        found = option.said
    elif optional:
        [found] = (k for k in typing.get_args(kind) if k is not types.NoneType)
    return found | None if optional else found


def _values(group: Any, given: dict[str, Any]) -> dict[str, Any]:
    """A group's options as the Python API takes them."""
    found: dict[str, Any] = {}
    for name, option in declared(group).items():
        if option.setting:
            found[name] = threshold_overrides()
            continue
        value = given[name]
        found[name] = value.value if isinstance(value, Enum) else value
        if option.off:
            found[name] = not value
    if "model" in found:
        found["model"] = own_model(found["model"])
    return found
