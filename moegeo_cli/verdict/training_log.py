"""Running figures over the training log, for the rules about the loss.

The figures are computed in one pass over the log. Each checkpoint then reads them up to its step.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

WINDOW = 10  # a level is the median loss of this many entries, because single batches are noisy


class TrainingFigures:
    """Running figures of a log's losses and learning rates.

    Args:
        entries: the entries of the log, in any order. Those without a step count as the earliest.
    """

    def __init__(self, entries: Iterable[Mapping[str, Any]]) -> None:
        ordered = sorted(entries, key=_step)
        self.entry_steps = [_step(entry) for entry in ordered]
        losses = [entry for entry in ordered if isinstance(entry.get("loss"), int | float)]
        self.loss_steps = [_step(entry) for entry in losses]
        values = [float(entry["loss"]) for entry in losses]
        # levels[i] is the median of the losses i to i + WINDOW - 1
        self.levels = [
            statistics.median(values[i : i + WINDOW]) for i in range(len(values) - WINDOW + 1)
        ]
        self.lowest = list(accumulate(self.levels, min))
        rises = [
            value / level - 1.0 if level > 0 else 0.0
            for value, level in zip(values[WINDOW:], self.levels, strict=False)
        ]
        self.highest_rise = list(accumulate(rises, max))
        self.ordered = ordered
        self.first_nonfinite = next(
            (n for n, entry in enumerate(ordered) if "loss" in (entry.get("nonfinite") or ())), None
        )
        rates = [(place, e.get("learning_rate")) for place, e in enumerate(ordered)]
        known = [(place, float(rate)) for place, rate in rates if isinstance(rate, int | float)]
        self.rate_places = [place for place, _ in known]
        self.peak_rates = list(accumulate((rate for _, rate in known), max))

    def until(self, step: int | None) -> FiguresSoFar:
        """The figures up to a step; None for the whole log."""
        if step is None:
            return FiguresSoFar(self, len(self.entry_steps), len(self.loss_steps))
        return FiguresSoFar(
            self, bisect_right(self.entry_steps, step), bisect_right(self.loss_steps, step)
        )


@dataclass(frozen=True, slots=True)
class FiguresSoFar:
    """The figures of the first `entries` entries, of which `losses` have a loss."""

    whole: TrainingFigures
    entries: int
    losses: int

    @property
    def levels(self) -> int:
        """Number of levels."""
        return max(0, self.losses - WINDOW + 1)

    @property
    def level(self) -> float | None:
        """The median of the last `WINDOW` losses; None if there are fewer."""
        return self.whole.levels[self.levels - 1] if self.levels else None

    @property
    def lowest_before(self) -> float | None:
        """The lowest level before the last one; None if there is none."""
        return self.whole.lowest[self.levels - 2] if self.levels > 1 else None

    @property
    def first_nonfinite(self) -> Mapping[str, Any] | None:
        """The first entry with a loss that is not finite; None without one."""
        first = self.whole.first_nonfinite
        return None if first is None or first >= self.entries else self.whole.ordered[first]

    @property
    def peak_rate(self) -> float | None:
        """The highest learning rate; None if none was logged."""
        count = bisect_right(self.whole.rate_places, self.entries - 1)
        return self.whole.peak_rates[count - 1] if count else None

    def spike(self, limit: float) -> tuple[int, float] | None:
        """The step of the first rise over a limit, and the highest rise; None without one.

        A rise is a loss over the level before it, minus 1.

        Args:
            limit: the limit of a rise.
        """
        rises = self.whole.highest_rise
        first = bisect_right(rises, limit)
        if first >= self.losses - WINDOW:
            return None
        onset = self.whole.loss_steps[first + WINDOW]
        return (int(onset) if onset >= 0 else 0), rises[self.losses - WINDOW - 1]


def _step(entry: Mapping[str, Any]) -> float:
    step = entry.get("step")
    return float(step) if isinstance(step, int | float) else float("-inf")
