"""The one list of commands: each with its options, and with what it prints."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moegeo_cli import options as o


@dataclass(frozen=True, slots=True)
class Command:
    """A command.

    Its function in Python is NAME in `moegeo_cli.commands.NAME.api`, its command line NAME in
    `moegeo_cli.cli.NAME`.

    Attributes:
        name: what it is called.
        options: its options, in Python and on the command line.
        output: further options of the command line.
    """

    name: str
    options: Any
    output: tuple[Any, ...]

    @property
    def groups(self) -> tuple[Any, ...]:
        """All groups of options on the command line."""
        return (self.options, *self.output)

    @property
    def function(self) -> Callable[..., Any]:
        """Its function in Python; importing it may import torch."""
        module = importlib.import_module(f"moegeo_cli.commands.{self.name}.api")
        found: Callable[..., Any] = getattr(module, self.name)
        return found


COMMANDS = (
    Command("analyze", o.Analyze, (o.Gate, o.RunOutput)),
    Command("check", o.Check, (o.Gate, o.ReportOutput)),
    Command("compare", o.Compare, (o.ReportOutput,)),
    Command("report", o.StorePlace, (o.RunOutput,)),
    Command("explain", o.NoOptions, (o.FactsOutput,)),
    Command("inspect", o.Model, (o.FactsOutput,)),
    Command("experts", o.Experts, (o.LensOutput,)),
    Command("routing", o.Routing, (o.LensOutput,)),
    Command("invariance", o.Invariance, (o.FactsOutput,)),
)


def find_command(name: str) -> Command:
    """The command of a name."""
    return next(command for command in COMMANDS if command.name == name)
