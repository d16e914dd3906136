"""The JSON formats: their version, and the name of each record's format."""

from __future__ import annotations

from typing import TypeAlias

from moegeo_cli.records.check import CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.lenses import LensRecord
from moegeo_cli.records.run import RunRecord
from moegeo_cli.registry import command_of

AnyRecord: TypeAlias = RunRecord | ComparisonRecord | CheckRecord | LensRecord
# The version of all formats. Increase it if a key changes its meaning; adding keys is allowed.
VERSION = 1


def format_of(record: type) -> str:
    """The name of the JSON format of a record's class, for example "moegeo.run"."""
    return command_of(record).format
