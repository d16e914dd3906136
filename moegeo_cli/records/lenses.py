"""Lenses: further commands on one checkpoint, whose findings reach the verdict of its run.

`moegeo experts` and `moegeo routing` are such. What a lens measured is kept with the run's other
measurements, and `moegeo analyze` judges it with the newest checkpoint: measured once, judged
whenever asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from moegeo_cli.records.metric import Coverage
from moegeo_cli.records.verdict import Check, Finding, Intervention


class LensLayer(Protocol):
    """What every lens says of a router: where it stands, and E × E matrices by name."""

    @property
    def layer(self) -> int: ...  # noqa: D102

    @property
    def router(self) -> str: ...  # noqa: D102

    @property
    def matrices(self) -> Mapping[str, Any]: ...  # noqa: D102


class LensRecord(Protocol):
    """What the records of all lenses have: frozen dataclasses with at least these fields."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def step(self) -> int | None: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def probe(self) -> Any: ...  # noqa: D102

    @property
    def settings(self) -> Mapping[str, Any]: ...  # noqa: D102

    @property
    def coverage(self) -> Coverage: ...  # noqa: D102

    @property
    def layers(self) -> Sequence[Any]: ...  # noqa: D102

    @property
    def findings(self) -> tuple[Finding, ...]: ...  # noqa: D102

    @property
    def interventions(self) -> tuple[Intervention, ...]: ...  # noqa: D102

    @property
    def checks(self) -> tuple[Check, ...]: ...  # noqa: D102


# What is there of each lens: its record, or why there is none.
Lenses = Mapping[str, LensRecord | str]


def command_name(lens: str) -> str:
    """The command that a lens is measured by."""
    return f"moegeo {lens}"


def absent_reason(lens: str) -> str:
    """Why there is no record: never measured, or not looked for, which reads the same."""
    return f"no result of `{command_name(lens)}` on this checkpoint is at hand"


def damaged_reason(lens: str) -> str:
    """Why a record that is there does not count."""
    return f"what `{command_name(lens)}` kept is damaged: run it again"
