"""The limits of the rules: shipped values with their sources, and the user's own values.

thresholds.toml holds limits from citations and uncalibrated ones. The evidence study
(docs/results/evidence.md) writes its measured limits to calibration.toml: do not edit that file.
"""

from __future__ import annotations

import difflib
import functools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.records import Threshold

FOLDER = Path(__file__).parent
OWN = "set by the user"


@dataclass(frozen=True, slots=True)
class Cell:
    """A limit for one E and K."""

    experts: int
    top_k: int
    value: float


@dataclass(frozen=True, slots=True)
class Limit:
    """The limit of one rule.

    `cells` holds its values by E and K, if it depends on them; `own` says that the user set it.
    """

    threshold: Threshold
    cells: tuple[Cell, ...] = ()
    own: bool = False

    @property
    def value(self) -> float:
        """The limit as a number."""
        assert self.threshold.value is not None
        return self.threshold.value

    @property
    def calibrated(self) -> bool:
        """Whether the limit was measured against outcomes of runs, or was set by the user."""
        return not self.threshold.source.startswith("uncalibrated")


Thresholds = Mapping[str, Limit]
FIXED = {"dead-experts": "the test of dead experts depends on it"}


def load_thresholds(overrides: Mapping[str, Any] | Path | str | None = None) -> Thresholds:
    """The shipped limits, with the user's values in their place.

    Args:
        overrides: numbers by name, or the path of a TOML file with them (at the top level or under
            `[thresholds]`). Instead of a number, a table may give `value` and `source`.

    Raises:
        UsageError: an unknown name, a value that is not a number, or a file that cannot be read.
    """
    limits = dict(_shipped())
    if isinstance(overrides, Path | str):
        overrides = _read(Path(overrides))
    if overrides is not None and not isinstance(overrides, Mapping):
        raise UsageError(
            "thresholds are a table or the path of a TOML file", found=repr(overrides)[:80]
        )
    for name, given in (overrides or {}).items():
        if name not in limits:
            near = difflib.get_close_matches(str(name), limits, 1)
            raise UsageError(
                f"no threshold is called {name!r}",
                found=", ".join(limits),
                hint=f"did you mean {near[0]}?" if near else None,
            )
        if name in FIXED:
            raise UsageError(
                f"the threshold {name} cannot be set: {FIXED[name]}", found=repr(given)[:80]
            )  # fmt: skip
        if isinstance(given, Mapping):
            _refuse_keys(name, given)
        value = given.get("value") if isinstance(given, Mapping) else given
        source = given.get("source", OWN) if isinstance(given, Mapping) else OWN
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise UsageError(f"the threshold {name} is not a number", found=repr(value)[:80])
        if value < 0:
            raise UsageError(f"the threshold {name} is negative", found=repr(value))
        limits[name] = replace(
            limits[name], threshold=Threshold(float(value), str(source)), cells=(), own=True
        )
    return limits


def _refuse_keys(name: str, given: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in given if key not in ("value", "source"))
    if unknown:
        raise UsageError(
            f"the threshold {name} takes a value and a source, and nothing else",
            found=", ".join(unknown),
        )
    if not isinstance(given.get("source", OWN), str):
        raise UsageError(
            f"the source of the threshold {name} is not text", found=repr(given["source"])[:80]
        )


def nearest_cell(cells: Sequence[Cell], experts: int, top_k: int) -> Cell:
    """The cell nearest to E and K by |Δ ln E| + |Δ ln K|; of equally near ones, the smaller."""
    return min(
        cells,
        key=lambda c: (
            abs(math.log(c.experts / experts)) + abs(math.log(c.top_k / top_k)),
            c.experts,
            c.top_k,
        ),
    )


def collapse_limit(limit: Limit, experts: int, top_k: int) -> float:
    """The limit on (`collapse` minus its null) for E experts of which K are chosen."""
    if not limit.cells:
        return limit.value
    return nearest_cell(limit.cells, experts, top_k).value


def is_studied(limit: Limit, experts: int, top_k: int) -> bool:
    """Whether a limit was measured at this E and K; a limit without cells holds for all."""
    return not limit.cells or any((c.experts, c.top_k) == (experts, top_k) for c in limit.cells)


@functools.cache
def _shipped() -> Mapping[str, Limit]:
    rows = tomllib.loads((FOLDER / "thresholds.toml").read_text(encoding="utf-8"))
    measured = tomllib.loads((FOLDER / "calibration.toml").read_text(encoding="utf-8"))
    return {
        name: _limit(rows.get(name, {}) | measured.get(name, {})) for name in {**rows, **measured}
    }


def forget() -> None:
    """Clear the cache, so that the shipped limits are read again after they were rewritten."""
    _shipped.cache_clear()


def _limit(row: Mapping[str, Any]) -> Limit:
    # The source says what the rates refer to.
    rates = f"; rates: {row['rates']}" if "rates" in row else ""
    return Limit(
        Threshold(
            float(row["value"]),
            row["source"] + rates,
            row.get("precision"),
            row.get("recall"),
            row.get("false_positive_rate"),
        ),
        tuple(Cell(**cell) for cell in row.get("cells", ())),
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a file of thresholds", found=str(error)[:200]) from error
    inner = table.get("thresholds", table)
    if not isinstance(inner, dict):
        raise UsageError(f"{path} is not a file of thresholds", found="thresholds is not a table")
    return inner
