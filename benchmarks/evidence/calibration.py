"""Fit limits with at most 5% false alarms, measured on tasks that were not used for fitting.

`router-collapse`: a limit on `collapse` less its null, linear in ln E and ln K, by quantile
regression over checkpoints that are not collapsed. `loss-behind-reference`: one number, a quantile
of the relative gaps of runs that did not fail. In both the quantile is raised until runs of a
left-out task raise no more than 5%.

Legend: E experts, K chosen per token, N checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import QuantileRegressor

from benchmarks.evidence.auc import clopper_pearson

FALSE_ALARMS = 0.05
FITTED_FROM = 0.1
QUANTILES = (0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
Limit = Callable[[int, int], float]


@dataclass(frozen=True)
class Rates:
    """What a rule did against a label; counts, from which all rates follow."""

    hits: int
    misses: int
    false_alarms: int
    passes: int

    @classmethod
    def of(cls, alarm_N: Any, label_N: Any) -> Rates:
        """Count."""
        alarm, label = np.asarray(alarm_N, bool), np.asarray(label_N, bool)
        return cls(int((alarm & label).sum()), int((~alarm & label).sum()),
                   int((alarm & ~label).sum()), int((~alarm & ~label).sum()))  # fmt: skip

    @property
    def precision(self) -> tuple[int, int]:
        """Alarms that were right, of all alarms."""
        return self.hits, self.hits + self.false_alarms

    @property
    def recall(self) -> tuple[int, int]:
        """Failures with an alarm, of all failures."""
        return self.hits, self.hits + self.misses

    @property
    def false_positive_rate(self) -> tuple[int, int]:
        """Alarms among what was sound."""
        return self.false_alarms, self.false_alarms + self.passes

    def to_data(self) -> dict[str, Any]:
        """For a data file: rates to three digits, null where nothing could be counted."""
        found: dict[str, Any] = {}
        for name in ("precision", "recall", "false_positive_rate"):
            hits, count = getattr(self, name)
            low, high = clopper_pearson(hits, count)
            if count:
                found[name] = round(hits / count, 3)
                found[f"{name}_interval"] = [round(low, 3), round(high, 3)]
                found[f"{name}_of"] = count
        return found


def fit_collapse(table: pd.DataFrame, quantile: float) -> Limit:
    """A limit by (E, K) from checkpoints of `table` that are not collapsed."""
    sound = table[~table["collapsed_now"] & np.isfinite(table["collapse_excess"])]
    x_N2 = np.log(sound[["model_experts", "model_top_k"]].to_numpy(float))
    model = QuantileRegressor(quantile=quantile, alpha=0.0, solver="highs")
    model.fit(x_N2, sound["collapse_excess"].to_numpy(float))
    constant, (of_experts, of_top_k) = float(model.intercept_), model.coef_

    def limit(experts: int, top_k: int) -> float:
        value = constant + of_experts * np.log(experts) + of_top_k * np.log(top_k)
        return float(min(max(value, 0.05), 0.999))

    return limit


def fit_gap(table: pd.DataFrame, quantile: float) -> float:
    """The limit on the relative gap from points of runs that did not fail."""
    sound = table.loc[~table["failed"] & np.isfinite(table["gap"]), "gap"]
    return float(max(np.quantile(sound, quantile), 0.0))


def collapse_alarms(table: pd.DataFrame, limit: Limit) -> np.ndarray:
    """Which checkpoints are over the limit in a router."""
    limits = [
        limit(int(e), int(k))
        for e, k in zip(table["model_experts"], table["model_top_k"], strict=True)
    ]
    return (table["collapse_excess"] >= np.array(limits)).to_numpy()


def leaving_tasks_out(
    table: pd.DataFrame, fit: Callable[[pd.DataFrame], Any],
    apply: Callable[[pd.DataFrame, Any], np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Alarms on each task by a limit that was fitted on the others."""
    alarms = np.zeros(len(table), dtype=bool)
    for task in sorted(set(table["task"])):
        own = (table["task"] == task).to_numpy()
        alarms[own] = apply(table[own], fit(table[~own]))
    return alarms


def choose_quantile(
    table: pd.DataFrame, label: str, fit: Callable[[pd.DataFrame, float], Any],
    apply: Callable[[pd.DataFrame, Any], np.ndarray],
) -> tuple[float, Rates]:  # fmt: skip
    """The smallest quantile with at most 5% false alarms on left-out tasks, and its rates there."""
    rates = None
    for quantile in QUANTILES:
        alarms = leaving_tasks_out(table, lambda t, q=quantile: fit(t, q), apply)  # type: ignore[misc]
        rates = Rates.of(alarms, table[label])
        false, sound = rates.false_positive_rate
        if false <= FALSE_ALARMS * sound:
            return quantile, rates
    assert rates is not None
    return QUANTILES[-1], rates


def cell_values(limit: Limit, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The limit of each (E, K) of the table that it was fitted on."""
    found = table[["model_experts", "model_top_k"]].drop_duplicates().to_numpy(int).tolist()
    return [{"experts": e, "top_k": k, "value": round(limit(e, k), 3)} for e, k in sorted(found)]
