"""The commands, lenses, formats, router metrics and scorings of moegeo. Each is found by its file.

A command is `COMMAND` in `commands/NAME/__init__.py`, a format is `FORMAT` in
`reports/formats/NAME.py`, a metric of a router is `estimate` in `measuring/metrics/NAME.py`, a
scoring is `SCORING` in `scorings/NAME.py`. The registry lists these folders, so one more file adds
one more command, format, metric or scoring. Functions and classes are named as "MODULE:NAME" and
imported when they are needed: importing the registry does not import torch.
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
        name: its name in Python and in the usage line.
        help: its help text.
        optional: whether the command works without it.
    """

    name: str
    help: str
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Lens:
    """The parts of a lens: a command that views one checkpoint and adds findings to the verdict.

    Attributes:
        report: the module with `print_record(record, console)`, `render(record)` and
            `render_markdown(record)`.
        rules: the mapping from names of findings to their rules; "" for none.
    """

    report: str
    rules: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Its function on the command line is NAME in `moegeo_cli.cli.NAME`. For a lens it is built from
    this declaration.

    Attributes:
        name: its name.
        options: the group of its options, in Python and on the command line.
        output: further groups of options, on the command line only.
        api: its function in Python; "" for NAME in `moegeo_cli.commands.NAME.api`.
        record: the class of its result; "" if the result has no JSON format.
        format: the name of its JSON format; "" for none.
        page: the function that turns a record into its HTML page; "" for none.
        screen: the function that builds the first screen from a page and a record; "" if the
            command always prints its full report.
        printer: the function that prints a record on a terminal, for a command whose only formats
            are this one and JSON; "" for other commands.
        place: its position in lists; commands with the same place are sorted by name.
        lens: the parts of a lens; None for other commands.
        help: the text of its help page; for a lens only.
        arguments: the paths that it takes; for a lens only.
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
        """All groups of options that the command has on the command line."""
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
        name: its name for `--format`.
        place: its position in lists; formats with the same place are sorted by name.
        suffixes: suffixes of `--output` that select this format if `--format` is not given.
        writers: the function that writes a record, by the name of the record's JSON format.
        lens: the function in a lens's report module that writes the lens's record; "" for none.
        every: the function that writes a record of any class; "" for none.
        needs: the optional package that writes it; "" for none. A format with a package is binary
            and is written to a file only.
        page: the function that writes a record of any command with an HTML page; "" for none.
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
    """Import and return the object that "MODULE:NAME" names."""
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
    """Modules of the metrics that are computed from one router's stored arrays, by metric name."""
    modules = pkgutil.iter_modules(importlib.import_module(ROUTER_METRICS).__path__)
    return {module.name: f"{ROUTER_METRICS}.{module.name}" for module in modules}


def scoring_modules() -> list[Any]:
    """Every `SCORING`, in order of place and name. Not cached: `scorings` keeps the result."""
    return _found(SCORINGS, "SCORING")


@functools.cache
def added_code() -> Mapping[str, str]:
    """SHA-256 of the files of added metrics and scorings, by module: their code decides numbers.

    Added means that the file does not lie in moegeo's own folder.
    """
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
    """The command with this name."""
    return commands()[name]


@functools.cache
def lenses() -> Mapping[str, Command]:
    """The commands that are lenses, by name."""
    return {name: command for name, command in commands().items() if command.lens is not None}


@functools.cache
def records() -> Mapping[str, type]:
    """The record class of each JSON format, by the format's name."""
    return {c.format: load(c.record) for c in commands().values() if c.format}


@functools.cache
def _commands_of_records() -> Mapping[type, Command]:
    return {records()[c.format]: c for c in commands().values() if c.format}


def command_of(record: type) -> Command:
    """The command whose results are records of this class.

    Raises:
        KeyError: no command has such results.
    """
    return _commands_of_records()[record]


def formats_of_reports() -> tuple[str, ...]:
    """Names of the formats of a run's report."""
    return tuple(formats())


def formats_of_lenses() -> tuple[str, ...]:
    """Names of the formats of a lens's report."""
    return tuple(n for n, found in formats().items() if found.every or found.lens or found.page)


def writer(record: type, name: str) -> Callable[[Any], Any] | None:
    """The function that writes records of a class in the named format; None if there is none."""
    command, found = command_of(record), formats()[name]
    if command.lens is not None and found.lens:
        function: Callable[[Any], Any] = load(f"{command.lens.report}:{found.lens}")
        return function
    place = found.writers.get(command.format, found.every) or (found.page if command.page else "")
    return load(place) if place else None


def forget() -> None:
    """Clear the caches, so that the folders are listed again after a file was added."""
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
