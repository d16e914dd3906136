"""The limits of the rules: shipped values with their sources, and a user's own."""

from __future__ import annotations

import difflib
import functools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moegeo_cli.errors import UsageError
from moegeo_cli.records import Threshold

FOLDER = Path(__file__).parent
OWN = "set by the user"


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit; `scale` says in which unit the value is, where the rule converts it."""

    threshold: Threshold
    scale: str | None = None

    @property
    def value(self) -> float:
        """The number."""
        assert self.threshold.value is not None
        return self.threshold.value

    @property
    def calibrated(self) -> bool:
        """Whether it was measured against outcomes, or is the user's own decision."""
        return not self.threshold.source.startswith("uncalibrated")


Thresholds = Mapping[str, Limit]
FIXED = {"dead-experts": "the test that measures dead experts is built on it"}


def load_thresholds(overrides: Mapping[str, Any] | Path | None = None) -> Thresholds:
    """The shipped limits, with a user's overrides.

    Args:
        overrides: names and numbers, or a TOML file of them (at the top or under
            `[thresholds]`); a table may give `value` and `source`.

    Raises:
        UsageError: an unknown name, not a number, or a file that cannot be read.
    """
    limits = dict(_shipped())
    if isinstance(overrides, Path):
        overrides = _read(overrides)
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
            limits[name], threshold=Threshold(float(value), str(source)), scale=None
        )
    return limits


def _refuse_keys(name: str, given: Mapping[str, Any]) -> None:
    unknown = sorted(str(key) for key in given if key not in ("value", "source"))
    if unknown:
        raise UsageError(
            f"the threshold {name} has a value and a source, and nothing else",
            found=", ".join(unknown),
        )
    if not isinstance(given.get("source", OWN), str):
        raise UsageError(
            f"the source of the threshold {name} is not text", found=repr(given["source"])[:80]
        )


def collapse_limit(limit: Limit, experts: int, top_k: int) -> float:
    r"""A limit on the scale of `collapse`, for E experts of which K are chosen.

    The pilot divided the distance by 2 arccos(1/√E); `collapse` divides it by
    2 arccos √(K/E), the most that K distinct experts a token can reach.
    """
    if limit.scale != "d_max":
        return limit.value
    return limit.value * math.acos(1 / math.sqrt(experts)) / math.acos(math.sqrt(top_k / experts))


@functools.cache
def _shipped() -> Mapping[str, Limit]:
    table = tomllib.loads((FOLDER / "thresholds.toml").read_text(encoding="utf-8"))
    return {
        name: Limit(
            Threshold(
                float(row["value"]),
                row["source"],
                row.get("precision"),
                row.get("recall"),
                row.get("false_positive_rate"),
            ),
            row.get("scale"),
        )
        for name, row in table.items()
    }


def _read(path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no file of thresholds", found=str(error)[:200]) from error
    inner = table.get("thresholds", table)
    if not isinstance(inner, dict):
        raise UsageError(f"{path} is no file of thresholds", found="thresholds is not a table")
    return inner
