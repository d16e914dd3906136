"""The JSON formats: their names, their version and the records that they hold."""

from __future__ import annotations

from typing import TypeAlias

from moegeo_cli.records.check import CheckRecord
from moegeo_cli.records.comparison import ComparisonRecord
from moegeo_cli.records.lenses import LensRecord
from moegeo_cli.records.run import RunRecord
from moegeo_cli.registry import command_of

AnyRecord: TypeAlias = RunRecord | ComparisonRecord | CheckRecord | LensRecord
# Of all formats: the first. Raised where a key changes its meaning; keys may be added within it.
VERSION = 1


def format_of(record: type) -> str:
    """The name of the JSON format of a record's class, "moegeo.run" for one."""
    return command_of(record).format
