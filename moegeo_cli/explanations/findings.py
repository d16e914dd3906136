"""The definitions of all findings, from findings.toml."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moegeo_cli.records.verdict import Axis, Severity

FILE = Path(__file__).with_name("findings.toml")


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a finding: one table of findings.toml.

    Attributes:
        id: its number, for example MG101.
        name: its name.
        axis: the part of the verdict that it belongs to.
        severity: its worst severity.
        headline: one sentence for readers who do not know the field.
        meaning: what it is.
        holds: the condition under which it holds.
        why: why it matters.
        known: known limits of it.
        example: a message of it.
        shipped: the worst severity with the shipped limits, if that is less.
        fact: whether it is an exact fact, which needs no calibrated limit.
        lens: the command whose record its rule reads; None for the run's own record.
    """

    id: str
    name: str
    axis: Axis
    severity: Severity
    headline: str
    meaning: str
    holds: str
    why: str
    known: str = ""
    example: str = ""
    shipped: Severity | None = None
    fact: bool = False
    lens: str | None = None


@functools.cache
def definitions() -> Mapping[str, Definition]:
    """All findings by name."""
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Definition(name=name, **row) for name, row in table.items()}
