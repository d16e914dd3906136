"""Every finding by name: its id, its part of the verdict, its worst severity, its meaning."""

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
    """A finding as findings.toml has it."""

    id: str
    name: str
    axis: Axis
    severity: Severity
    headline: str  # for those who do not know the field
    meaning: str
    holds: str  # when
    why: str  # it matters
    known: str = ""  # against it
    example: str = ""
    shipped: Severity | None = (
        None  # the worst severity with the shipped limits, where that is less
    )
    fact: bool = False
    lens: str | None = None  # the command whose record it reads; None for the run's own


@functools.cache
def definitions() -> Mapping[str, Definition]:
    """All findings by name."""
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    return {name: Definition(name=name, **row) for name, row in table.items()}
