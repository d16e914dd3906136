"""What the declaration of an option is, and functions that take options as checked keywords."""

from __future__ import annotations

import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from moegeo_cli.errors import UsageError

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

MEASURING, JUDGING, OUTPUT = "What to measure, and how", "How to judge", "Output"
OWN = "A model of your own (docs/how-to/own-models.md)"
PANELS = (MEASURING, JUDGING, OWN, OUTPUT)


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        default: the value where none is given.
        help: what it does, for the help page and the reference.
        panel: the part of the help page that it stands in.
        flags: its names on the command line; empty for the name of the field.
        said: its type on the command line, where that takes fewer forms than Python does.
        least: the least number that it takes; None for any.
        off: its flag on the command line turns it off.
        setting: it is a table of the settings file, and no flag.
        words: gives the words that it takes, where its type does not name them.
    """

    default: Any
    help: str
    panel: str = MEASURING
    flags: tuple[str, ...] = ()
    said: Any = None
    least: int | None = None
    off: bool = False
    setting: bool = False
    words: Callable[[], tuple[str, ...]] | None = None


@functools.cache
def declared(group: Any) -> Mapping[str, Option]:
    """The options of a group by name, those of the groups that it takes together first."""
    return {name: option for name, (_, option) in _fields(group).items()}


@functools.cache
def _fields(group: Any) -> Mapping[str, tuple[Any, Option]]:
    hints = typing.get_type_hints(group, include_extras=True)
    return {name: typing.get_args(hint) for name, hint in hints.items()}


def type_of(group: Any, name: str) -> Any:
    """The type of an option as Python takes it."""
    return _fields(group)[name][0]


def choices(kind: Any) -> tuple[str, ...]:
    """The words that an option takes; none where it takes any."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next((found for k in typing.get_args(kind) if (found := choices(k))), ())
    return ()


def words_of(group: Any, name: str) -> tuple[str, ...]:
    """The words that an option of a group takes; none where it takes any."""
    kind, option = _fields(group)[name]
    return choices(kind) if option.words is None else option.words()


def flag(name: str, option: Option) -> str:
    """An option's long name on the command line."""
    return (option.flags or (f"--{name.replace('_', '-')}",))[0]


def complete(group: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options given, checked, and the defaults of the others.

    Raises:
        UsageError: a word that an option does not take, or a number below its least.
    """
    for name, value in given.items():
        option, known = declared(group)[name], words_of(group, name)
        if known and value is not None and value not in known:
            raise UsageError(
                f"{flag(name, option)} is not one of {', '.join(known)}", found=repr(value)
            )
        if option.least is not None and value is not None and value < option.least:
            raise UsageError(
                f"{flag(name, option)} must be at least {option.least}", found=str(value)
            )
    return {name: given.get(name, option.default) for name, option in declared(group).items()}


def part(group: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that are a group's."""
    return {name: options[name] for name in declared(group)}


def takes(group: Any) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """A function of the Python API whose keywords are the options of a group.

    It is called with all of them. Its signature and docstring name them, for `help` and notebooks.
    """

    def wrap(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        own = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        names = {p.name for p in own}

        @functools.wraps(function)
        def call(*arguments: Arguments.args, **given: Arguments.kwargs) -> Result:
            options = {name: value for name, value in given.items() if name not in names}
            refuse_unknown(function.__name__, [*declared(group), *names], options)
            rest = {name: value for name, value in given.items() if name in names}
            return function(*arguments, **rest, **complete(group, options))  # type: ignore[arg-type]

        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{describe(group)}\n"
        call.__signature__ = _signature(function, own, group)  # type: ignore[attr-defined]
        return call

    return wrap


def refuse_unknown(called: str, known: Iterable[str], given: Iterable[str]) -> None:
    """See that all names given are known, as Python itself does where a signature names them.

    Raises:
        TypeError: one is not.
    """
    known = list(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            more = f". Did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{called}() got an unexpected keyword argument {name!r}{more}")


def _signature(
    function: Callable[..., Any], own: list[inspect.Parameter], group: Any
) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    first = [p for p in own if p.kind is not keyword]
    last = [p for p in own if p.kind is keyword]
    options = [
        inspect.Parameter(name, keyword, default=option.default, annotation=kind)
        for name, (kind, option) in _fields(group).items()
    ]
    returned = inspect.signature(function).return_annotation
    return inspect.Signature([*first, *options, *last], return_annotation=returned)


def describe(group: Any) -> str:
    """The options of a group as a part of a docstring."""
    lines = [f"    {name}: {option.help}" for name, option in declared(group).items()]
    return "\n".join(["Options:", *lines])
