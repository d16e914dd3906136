"""Lenses: commands on one checkpoint whose findings are part of the verdict of its run.

`moegeo experts` and `moegeo routing` are lenses. The record of a lens is stored with the run, and
`moegeo analyze` judges the stored record together with the newest checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

from moegeo_cli.records.metric import Coverage
from moegeo_cli.records.verdict import Check, Finding, Intervention


class LensLayer(Protocol):
    """The fields that every lens record has for a router: its place, and E × E matrices by name."""

    @property
    def layer(self) -> int: ...  # noqa: D102

    @property
    def router(self) -> str: ...  # noqa: D102

    @property
    def matrices(self) -> Mapping[str, Any]: ...  # noqa: D102


class LensRecord(Protocol):
    """The fields that the records of all lenses have. They are frozen dataclasses."""

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


# For each lens: its record, or the reason why there is none.
Lenses = Mapping[str, LensRecord | str]


def command_name(lens: str) -> str:
    """The command that runs a lens, for example "moegeo experts"."""
    return f"moegeo {lens}"


def absent_reason(lens: str) -> str:
    """The reason if no record of a lens was found."""
    return f"no result of `{command_name(lens)}` on this checkpoint is at hand"


def damaged_reason(lens: str) -> str:
    """The reason if the stored record of a lens is damaged."""
    return f"the stored result of `{command_name(lens)}` is damaged: run it again"
