"""Where the scalars of a run go: `--log SINK:WHERE`. One module of this folder is one sink.

A sink writes a run's point once: it asks its destination which steps are there already.
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
    """What a module of this folder is."""

    WHERE: str | None  # where it writes if nothing is said; None: it must be said
    EXTRA: str | None  # the extra of moegeo that brings its library
    PAST: bool  # it takes every checkpoint of a run; else the newest alone
    SAID: str  # how it is said on the command line

    def prepare(self, where: str) -> None:
        """See before the work that its library is there, and that it can write."""

    def write(self, where: str, run: str, points: Sequence[Point]) -> int:
        """Write those points of a run that are not there yet, and say how many."""


@dataclass(frozen=True, slots=True)
class Place:
    """A sink and where it writes."""

    name: str
    where: str

    @property
    def sink(self) -> Sink:
        """Its module."""
        return find_sink(self.name)

    def __str__(self) -> str:
        return f"{self.name}:{self.where}" if self.where else self.name


def open_places(said: str | Sequence[str] | None) -> tuple[Place, ...]:
    """The places that `--log` names, each ready to be written to.

    Args:
        said: one `SINK:WHERE`, or several.

    Raises:
        UsageError: a sink that is not known, without its place, or whose library is missing.
        OutputError: a place that cannot be written.
    """
    texts = [said] if isinstance(said, str) else list(said or ())
    places = dict.fromkeys(_parse(text) for text in texts)
    for place in places:
        try:
            place.sink.prepare(place.where)
        except ImportError as error:
            raise _missing(place, error) from error
    return tuple(places)


def log_run(run: RunRecord, places: Sequence[Place]) -> list[str]:
    """Write a run's scalars to every place; a point that is there already is not written again.

    Args:
        run: the run, judged.
        places: where to, as `open_places` gives them.

    Returns:
        What was done, a line a place.

    Raises:
        OutputError: a place that cannot be written.
    """
    name, lines = str(run.run.get("name") or "run"), []
    for place in places:
        points = points_of(run) if place.sink.PAST else points_of(run)[-1:]
        stepless = sum(checkpoint.step is None for checkpoint in run.checkpoints)
        try:
            new = place.sink.write(place.where, name, points)
        except MoegeoError:
            raise
        except Exception as error:  # of a library that is not ours
            raise OutputError(
                f"{place} cannot be written", found=f"{type(error).__name__}: {error}"[:300],
                hint="measurements are kept: moegeo report RUN --log ... tries again",
            ) from error  # fmt: skip
        lines.append(f"{place}: {_tell(new, len(points) - new, stepless)}")
    return lines


def _tell(new: int, there: int, stepless: int) -> str:
    said = f"{new} checkpoint{'' if new == 1 else 's'} written"
    said += f", {there} there already" if there else ""
    return f"{said}, {stepless} without a step left out" if stepless else said


def _parse(text: str) -> Place:
    name, _, where = text.strip().partition(":")
    if name not in NAMES:
        raise UsageError(
            f"--log does not know {name!r}",
            found=text,
            hint="one of " + ", ".join(find_sink(known).SAID for known in NAMES),
        )
    sink = find_sink(name)
    if not where and sink.WHERE is None:
        raise UsageError(f"--log {name} does not say where", found=text, hint=f"--log {sink.SAID}")
    return Place(name, where or sink.WHERE or "")


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
