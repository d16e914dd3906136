"""What the default policy says of a run at each decision, replayed from the tables.

The rules are the product's: limits are read where the verdict reads them. They are replayed here,
from the stored measurements, so that a new limit needs no new analysis.

Legend: E experts, K chosen per token.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd

ALARMS_AT = (0.1, 0.2, 0.5)
"""Where an alarm may lead to a restart: thresholds are fitted from 10% of training on."""


def worst_collapse(entry: str) -> tuple[float, float]:
    """`collapse` less its null in the worst router, and the same of the interval's lower end."""
    rows = [r for r in json.loads(entry) if r[0] is not None]
    if not rows:
        return float("nan"), float("nan")
    values = [v - (null or 0.0) for v, null, _ in rows]
    sure = [(v if low is None else low) - (null or 0.0) for v, null, low in rows]
    return max(values), max(sure)


def reference_gaps(runs: pd.DataFrame, points: pd.DataFrame) -> pd.Series:
    """Probe loss over that of a healthy seed of the base at the same decision, less 1.

    A healthy run is held against another seed than its own: seed 1 for seed 0, else seed 0.
    """
    loss = points.set_index(["name", "fraction"])["probe_loss"]
    gaps = []
    for name, fraction in points[["name", "fraction"]].itertuples(index=False):
        run = runs.loc[name]
        seed = 1 if run["kind"] == "healthy" and run["seed"] == 0 else 0
        other = (f"{run['base']}-healthy-{seed}", fraction)
        gaps.append(loss[(name, fraction)] / loss[other] - 1 if other in loss.index else np.nan)
    return pd.Series(gaps, index=points.index)


def alarm_rows(
    runs: pd.DataFrame, points: pd.DataFrame, collapse_limit: Callable[[int, int], float],
    gap_limit: float, rise_limit: float,
) -> pd.DataFrame:  # fmt: skip
    """Each point with the alarms that it raises: columns `collapse_alarm`, `gap_alarm`, `spike`."""
    table = points.join(
        runs[["base", "configuration", "kind", "task", "seed", "untouched", "failed", "collapsed",
              "diverged", "outcome", "model_experts", "model_top_k"]], on="name",
    )  # fmt: skip
    worst = [worst_collapse(entry) for entry in table["collapse_by_router"]]
    limits = [collapse_limit(int(e), int(k))
              for e, k in zip(table["model_experts"], table["model_top_k"], strict=True)]  # fmt: skip
    gap = reference_gaps(runs, points)
    return table.assign(
        collapse_excess=[w[0] for w in worst],
        collapse_sure=[w[1] for w in worst],
        collapse_alarm=[w[0] >= limit for w, limit in zip(worst, limits, strict=True)],
        gap=gap,
        gap_alarm=gap > gap_limit,
        spike=table["log.loss_rise_max"] > rise_limit,
    )
