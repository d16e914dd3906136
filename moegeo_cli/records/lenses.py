"""Lenses: further commands on one checkpoint, whose findings reach the verdict of its run.

`moegeo experts` and `moegeo routing` are such. What a lens measured is kept with the run's other
measurements, and `moegeo analyze` judges it with the newest checkpoint: measured once, judged
whenever asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from moegeo_cli.records.experts import ExpertsRecord
from moegeo_cli.records.routing import RoutingRecord

LensRecord: TypeAlias = ExpertsRecord | RoutingRecord
LENSES: Mapping[str, type[LensRecord]] = {"experts": ExpertsRecord, "routing": RoutingRecord}
# What is there of each lens: its record, or why there is none.
Lenses = Mapping[str, LensRecord | str]


def command(lens: str) -> str:
    """The command that a lens is measured by."""
    return f"moegeo {lens}"


def absent(lens: str) -> str:
    """Why there is no record: never measured, or not looked for, which reads the same."""
    return f"no result of `{command(lens)}` on this checkpoint is at hand"


def damaged(lens: str) -> str:
    """Why a record that is there does not count."""
    return f"what `{command(lens)}` kept is damaged: run it again"
