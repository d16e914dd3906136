"""The committed tables, each read once, and the values that several parts of the page share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from benchmarks.evidence.alarms import study_alarms
from benchmarks.evidence.prediction import all_areas, at_decision
from benchmarks.evidence.settings import DECISIONS, FRACTIONS
from benchmarks.evidence.table import FOLDER, read_runs, read_table


@dataclass
class Results:
    """The tables, read once."""

    @cached_property
    def runs(self) -> pd.DataFrame:
        """All runs, labelled."""
        return read_runs()

    @cached_property
    def points(self) -> pd.DataFrame:
        """All decisions."""
        return read_table("points")

    @cached_property
    def exact(self) -> pd.DataFrame:
        """Routers by the diagonal and by whole matrices."""
        return read_table("exact")

    @cached_property
    def restarts(self) -> pd.DataFrame | None:
        """Restarts, where they have been run."""
        return read_table("restarts") if (FOLDER / "restarts.csv.gz").exists() else None

    @cached_property
    def alarms(self) -> pd.DataFrame:
        """Every decision with the alarms that the shipped policy raises."""
        return study_alarms(self.runs, self.points)

    @cached_property
    def decisions(self) -> dict[float, pd.DataFrame]:
        """Runs with their features at each share of training."""
        return {f: at_decision(self.runs, self.points, f) for f in FRACTIONS}

    @cached_property
    def areas(self) -> pd.DataFrame:
        """The area of every feature at every decision."""
        return all_areas({f: self.decisions[f] for f in DECISIONS}, self.runs)

    def part(self, fraction: float, *, untouched: bool) -> pd.DataFrame:
        """A decision's development or untouched bases."""
        table = self.decisions[fraction]
        return table[table["untouched"] == untouched]
