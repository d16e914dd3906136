"""How an option is declared, and functions that take options as checked keyword arguments."""

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
        default: the value if none is given.
        help: what the option does, for the help page and the reference page.
        panel: the section of the help page that lists it.
        flags: its names on the command line; empty for the name of the field.
        cli_type: its type on the command line, if the command line takes fewer types than Python.
        minimum: the lowest number allowed; None for any.
        negated: the flag on the command line sets the option to False.
        settings_file_only: the option is a table of the settings file and has no flag.
        choices: returns the allowed words, if the type does not list them.
        importable: the value names Python code, which may lie in the current folder.
        own_table: in a settings file, only the command's own table sets this option. Above that
            table, its name means another option.
    """

    default: Any
    help: str
    panel: str = MEASURING
    flags: tuple[str, ...] = ()
    cli_type: Any = None
    minimum: int | None = None
    negated: bool = False
    settings_file_only: bool = False
    choices: Callable[[], tuple[str, ...]] | None = None
    importable: bool = False
    own_table: bool = False


@functools.cache
def declared(group: Any) -> Mapping[str, Option]:
    """The options of a group by name. Inherited options come first."""
    return {name: option for name, (_, option) in _fields(group).items()}


@functools.cache
def _fields(group: Any) -> Mapping[str, tuple[Any, Option]]:
    hints = typing.get_type_hints(group, include_extras=True)
    return {name: typing.get_args(hint) for name, hint in hints.items()}


def type_of(group: Any, name: str) -> Any:
    """The type of an option in the Python API."""
    return _fields(group)[name][0]


def literal_choices(kind: Any) -> tuple[str, ...]:
    """The words of a Literal type, also within a union; empty if there is none."""
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return next((found for k in typing.get_args(kind) if (found := literal_choices(k))), ())
    return ()


def choices_of(group: Any, name: str) -> tuple[str, ...]:
    """The allowed words of an option; empty if any value is allowed."""
    kind, option = _fields(group)[name]
    return literal_choices(kind) if option.choices is None else option.choices()


def flag(name: str, option: Option) -> str:
    """An option's long name on the command line."""
    return (option.flags or (f"--{name.replace('_', '-')}",))[0]


def check_and_fill(group: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the given options, and fill in the defaults of the others.

    Raises:
        UsageError: a word that the option does not allow, or a number below its minimum.
    """
    for name, value in given.items():
        option, known = declared(group)[name], choices_of(group, name)
        if known and value is not None and value not in known:
            raise UsageError(
                f"{flag(name, option)} is not one of {', '.join(known)}", found=repr(value)
            )
        if option.minimum is not None and value is not None and value < option.minimum:
            raise UsageError(
                f"{flag(name, option)} must be at least {option.minimum}", found=str(value)
            )
    return {name: given.get(name, option.default) for name, option in declared(group).items()}


def select_options(group: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that belong to a group."""
    return {name: options[name] for name in declared(group)}


def takes(group: Any) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Decorate a function of the Python API that takes the options of a group as keywords.

    The function is called with a value for every option. Its signature and docstring list the
    options, for `help` and notebooks.
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
            filled = check_and_fill(group, options)
            return function(*arguments, **rest, **filled)  # type: ignore[arg-type]

        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{describe(group)}\n"
        call.__signature__ = _signature(function, own, group)  # type: ignore[attr-defined]
        return call

    return wrap


def refuse_unknown(called: str, known: Iterable[str], given: Iterable[str]) -> None:
    """Refuse unknown keyword arguments, as Python does for a signature without **options.

    Args:
        called: name of the function, for the message.
        known: names of all its arguments.
        given: names of the arguments in this call.

    Raises:
        TypeError: an unknown name.
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
    """The section of a docstring that lists the options of a group."""
    lines = [f"    {name}: {option.help}" for name, option in declared(group).items()]
    return "\n".join(["Options:", *lines])
