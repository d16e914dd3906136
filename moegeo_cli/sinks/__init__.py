"""Write the scalars of a run to dashboards: `--log SINK:WHERE`. Each module here is one sink.

A sink writes each checkpoint of a run once: it first reads which steps its destination has.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from moegeo_cli.errors import MoegeoError, OutputError, UsageError
from moegeo_cli.records import RunRecord
from moegeo_cli.scalars import Point, points_of

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


class Sink(Protocol):
    """The interface of the modules in this folder."""

    DEFAULT_PLACE: str | None  # where it writes without a WHERE; None if WHERE is required
    EXTRA: str | None  # the extra of moegeo that installs its library
    ALL_CHECKPOINTS: bool  # whether it takes every checkpoint of a run, or only the newest
    SYNTAX: str  # the value of --log, for help and errors

    def prepare(self, where: str) -> None:
        """Check, before the work, that the library is installed and the place can be written.

        Raises:
            ImportError: the library is not installed.
            OutputError: the place cannot be written.
        """

    def write(self, where: str, run: str, points: Sequence[Point]) -> int:
        """Write the points of a run whose steps are not there yet. Returns their number."""


@dataclass(frozen=True, slots=True)
class Place:
    """A sink and where it writes."""

    name: str
    where: str

    @property
    def sink(self) -> Sink:
        """The module of the sink."""
        return find_sink(self.name)

    def __str__(self) -> str:
        return f"{self.name}:{self.where}" if self.where else self.name


def open_places(log: str | Sequence[str] | None) -> tuple[Place, ...]:
    """The places that `--log` names, checked and ready to be written.

    Args:
        log: one `SINK:WHERE`, or several.

    Raises:
        UsageError: an unknown sink, a missing WHERE, or a library that is not installed.
        OutputError: a place cannot be written.
    """
    texts = [log] if isinstance(log, str) else list(log or ())
    places = dict.fromkeys(_parse(text) for text in texts)
    for place in places:
        try:
            place.sink.prepare(place.where)
        except ImportError as error:
            raise _missing(place, error) from error
    return tuple(places)


def log_run(run: RunRecord, places: Sequence[Place]) -> list[str]:
    """Write a run's scalars to every place; steps that are there already are skipped.

    Args:
        run: the run, with its verdict.
        places: where to write, from `open_places`.

    Returns:
        A summary line for each place.

    Raises:
        OutputError: a place cannot be written.
    """
    name, lines = str(run.run.get("name") or "run"), []
    for place in places:
        points = points_of(run) if place.sink.ALL_CHECKPOINTS else points_of(run)[-1:]
        stepless = sum(checkpoint.step is None for checkpoint in run.checkpoints)
        try:
            new = place.sink.write(place.where, name, points)
        except MoegeoError:
            raise
        except Exception as error:  # the sink's library may raise anything
            raise OutputError(
                f"{place} cannot be written", found=f"{type(error).__name__}: {error}"[:300],
                hint="measurements are kept: moegeo report RUN --log ... tries again",
            ) from error  # fmt: skip
        lines.append(f"{place}: {_summary(new, len(points) - new, stepless)}")
    return lines


def _summary(new: int, there: int, stepless: int) -> str:
    words = f"{new} checkpoint{'' if new == 1 else 's'} written"
    words += f", {there} there already" if there else ""
    return f"{words}, {stepless} without a step left out" if stepless else words


def _parse(text: str) -> Place:
    name, _, where = text.strip().partition(":")
    if name not in NAMES:
        raise UsageError(
            f"--log does not know {name!r}",
            found=text,
            hint="one of " + ", ".join(find_sink(known).SYNTAX for known in NAMES),
        )
    sink = find_sink(name)
    if not where and sink.DEFAULT_PLACE is None:
        raise UsageError(
            f"--log {name} does not say where", found=text, hint=f"--log {sink.SYNTAX}"
        )
    return Place(name, where or sink.DEFAULT_PLACE or "")


def find_sink(name: str) -> Sink:
    """The module of a sink."""
    module: Any = importlib.import_module(f"{__name__}.{name}")
    return cast(Sink, module)


def _missing(place: Place, error: ImportError) -> UsageError:
    return UsageError(
        f"--log {place.name} needs a library that is not installed",
        found=str(error),
        hint=f"pip install 'moegeo[{place.sink.EXTRA}]'",
    )
