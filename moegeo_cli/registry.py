"""What moegeo is made of: commands, lenses, formats, metrics, scorings: each is found by its file.

A command is `COMMAND` in `commands/NAME/__init__.py`, a format is `FORMAT` in
`reports/formats/NAME.py`, a metric of a router is `estimate` in `measuring/metrics/NAME.py`, a
scoring is `SCORING` in `scorings/NAME.py`. They are found by looking into their folder, so that a
new one is one more file. What they are made of is named here as "MODULE:NAME" and imported when it
is needed: importing the registry imports no torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COMMANDS, FORMATS = "moegeo_cli.commands", "moegeo_cli.reports.formats"
ROUTER_METRICS, SCORINGS = "moegeo_cli.measuring.metrics", "moegeo_cli.scorings"


@dataclass(frozen=True, slots=True)
class Argument:
    """A path that a command takes before its options.

    Attributes:
        name: in Python and in the usage line.
        help: what it is.
        optional: the command works without it.
    """

    name: str
    help: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Lens:
    """What makes a command a lens: a view of one checkpoint, whose findings reach the verdict.

    Attributes:
        report: the module with `print_record(record, console)`, `render(record)` and
            `render_markdown(record)`.
        rules: a mapping from the names of findings to their rules; "" for none.
    """

    report: str
    rules: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Its command line is NAME in `moegeo_cli.cli.NAME`, and for a lens it is made from this
    declaration.

    Attributes:
        name: what it is called.
        options: the group of its options, in Python and on the command line.
        output: further groups of options of the command line.
        api: its function in Python; "" for NAME in `moegeo_cli.commands.NAME.api`.
        record: the class of what it finds; "" where that has no format of its own.
        format: the name of its JSON format; "" for none.
        page: the function from a record to the page of its HTML report; "" for none.
        screen: the function from a terminal's page and a record to its first screen; "" where
            the full report is all that is printed.
        printer: the function that prints a record on a terminal, of a command that gives facts:
            its formats are this one and JSON. "" for other commands.
        place: where it stands in lists; commands of one place are in order of the alphabet.
        lens: what it has as a lens; None where it is none.
        help: its help page, of a lens.
        arguments: its paths, of a lens.
    """

    name: str
    options: Any
    output: tuple[Any, ...]
    api: str = ""
    record: str = ""
    format: str = ""
    page: str = ""
    screen: str = ""
    printer: str = ""
    place: int = 99
    lens: Lens | None = None
    help: str = ""
    arguments: tuple[Argument, ...] = ()

    @property
    def groups(self) -> tuple[Any, ...]:
        """All groups of options on the command line."""
        return (self.options, *self.output)

    @property
    def function(self) -> Callable[..., Any]:
        """Its function in Python; importing it may import torch."""
        found: Callable[..., Any] = load(self.api or f"{COMMANDS}.{self.name}.api:{self.name}")
        return found


@dataclass(frozen=True, slots=True)
class Format:
    """An output format.

    Attributes:
        name: its word for `--format`.
        place: where it stands in lists; formats of one place are in order of the alphabet.
        suffixes: of files that are written in it where `--format` says nothing.
        writers: the function that writes a record, by the name of the record's JSON format.
        lens: the function of a lens's report module that writes the lens's record; "" for none.
        every: the function that writes a record of any kind; "" for none.
        needs: the package that it is written with, where moegeo alone does not bring it. Such a
            format is bytes, and goes into a file.
        page: the function that writes a record whose command has a page; "" for none.
    """

    name: str
    place: int = 99
    suffixes: tuple[str, ...] = ()
    writers: Mapping[str, str] = field(default_factory=dict)
    lens: str = ""
    every: str = ""
    needs: str = ""
    page: str = ""


def load(place: str) -> Any:
    """What "MODULE:NAME" names, imported now."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def _found(package: str, name: str) -> list[Any]:
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    parts = (importlib.import_module(f"{package}.{module.name}") for module in modules)
    found = [getattr(part, name) for part in parts if hasattr(part, name)]
    return sorted(found, key=lambda part: (part.place, part.name))


@functools.cache
def commands() -> Mapping[str, Command]:
    """All commands by name."""
    return {command.name: command for command in _found(COMMANDS, "COMMAND")}


@functools.cache
def formats() -> Mapping[str, Format]:
    """All output formats by name."""
    return {found.name: found for found in _found(FORMATS, "FORMAT")}


@functools.cache
def router_metrics() -> Mapping[str, str]:
    """The modules of the metrics that rest on what is kept of one router, by the metric's name."""
    modules = pkgutil.iter_modules(importlib.import_module(ROUTER_METRICS).__path__)
    return {module.name: f"{ROUTER_METRICS}.{module.name}" for module in modules}


def scoring_modules() -> list[Any]:
    """Every `SCORING`, in the order of lists; who asks keeps it."""
    return _found(SCORINGS, "SCORING")


@functools.cache
def added_code() -> Mapping[str, str]:
    """Hashes of the metrics and scorings that lie beside moegeo's own: they decide numbers too."""
    own = Path(__file__).parent
    found = {}
    for package in (ROUTER_METRICS, SCORINGS):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            spec = module.module_finder.find_spec(module.name, None)
            file = Path(spec.origin) if spec is not None and spec.origin else None
            if file is not None and file.is_file() and own not in file.resolve().parents:
                found[f"{package}.{module.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def find_command(name: str) -> Command:
    """The command of a name."""
    return commands()[name]


@functools.cache
def lenses() -> Mapping[str, Command]:
    """The commands that are lenses, by name."""
    return {name: command for name, command in commands().items() if command.lens is not None}


@functools.cache
def records() -> Mapping[str, type]:
    """The class of the records of each JSON format."""
    return {c.format: load(c.record) for c in commands().values() if c.format}


@functools.cache
def _commands_of_records() -> Mapping[type, Command]:
    return {records()[c.format]: c for c in commands().values() if c.format}


def command_of(record: type) -> Command:
    """The command that finds records of a class.

    Raises:
        KeyError: no command does.
    """
    return _commands_of_records()[record]


def formats_of_reports() -> tuple[str, ...]:
    """The formats of a run's report."""
    return tuple(formats())


def formats_of_lenses() -> tuple[str, ...]:
    """The formats of a lens's report."""
    return tuple(n for n, found in formats().items() if found.every or found.lens or found.page)


def writer(record: type, name: str) -> Callable[[Any], Any] | None:
    """The function that writes records of a class in a format; None where there is none."""
    command, found = command_of(record), formats()[name]
    if command.lens is not None and found.lens:
        function: Callable[[Any], Any] = load(f"{command.lens.report}:{found.lens}")
        return function
    place = found.writers.get(command.format, found.every) or (found.page if command.page else "")
    return load(place) if place else None


def forget() -> None:
    """Look into the folders again at the next question: after a file was added."""
    for known in (
        commands,
        formats,
        lenses,
        records,
        _commands_of_records,
        router_metrics,
        added_code,
    ):
        known.cache_clear()
