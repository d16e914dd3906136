"""The findings of the default policy on a run at each decision, computed from the tables.

The rules are the product's: limits are read where the verdict reads them. They are replayed here,
from the stored measurements, so that a new limit needs no new analysis.

Legend: E experts, K chosen per token.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pandas as pd

# Where an alarm may lead to a restart: thresholds are fitted from 10% of training on.
ALARMS_AT = (0.1, 0.2, 0.5)
# Columns of alarms, the most severe first, and the findings that they are.
ALARMS = {
    "spike": "loss-spike",
    "collapse_alarm": "router-collapse",
    "gap_alarm": "loss-behind-reference",
    "dead_alarm": "dead-experts",
}


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
    limits = [
        collapse_limit(int(e), int(k))
        for e, k in zip(table["model_experts"], table["model_top_k"], strict=True)
    ]
    gap = reference_gaps(runs, points)
    return table.assign(
        collapse_excess=[w[0] for w in worst],
        collapse_sure=[w[1] for w in worst],
        collapse_alarm=[w[0] >= limit for w, limit in zip(worst, limits, strict=True)],
        gap=gap,
        gap_alarm=gap > gap_limit,
        spike=table["log.loss_rise_max"] > rise_limit,
        dead_alarm=["dead-experts" in json.loads(entry) for entry in table["findings"]],
    )


def study_alarms(runs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Alarms by the limits that the verdict ships."""
    from moegeo_cli.verdict import load_thresholds
    from moegeo_cli.verdict.thresholds import collapse_limit

    limits = load_thresholds()
    return alarm_rows(
        runs, points,
        lambda experts, top_k: collapse_limit(limits["router-collapse"], experts, top_k),
        limits["loss-behind-reference"].value, limits["loss-spike"].value,
    )  # fmt: skip


def first_alarms(runs: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Runs that raise an alarm where a restart may begin: a row a run, `alarm` and `alarm_at`.

    Where several findings are raised at once, the alarm is the first of ALARMS. `clean_at` is the
    last checkpoint before at which that finding was not raised, 0 for the start.
    """
    rows = study_alarms(runs, points).sort_values(["name", "fraction"])
    own = rows[rows["fraction"].isin(ALARMS_AT)]
    raised = own[own[list(ALARMS)].any(axis=1)].drop_duplicates("name")
    columns = [next(c for c in ALARMS if row[c]) for _, row in raised.iterrows()]
    by_run = dict(list(rows.groupby("name")))
    clean_at = []
    for (_, row), column in zip(raised.iterrows(), columns, strict=True):
        past = by_run[row["name"]]
        past = past[(past["fraction"] < row["fraction"]) & ~past[column].astype(bool)]
        clean_at.append(float(past["fraction"].max()) if len(past) else 0.0)
    return raised.assign(
        alarm=[ALARMS[c] for c in columns], alarm_at=raised["fraction"], clean_at=clean_at
    )


def rule_columns(
    runs: pd.DataFrame, points: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, str]]:  # fmt: skip
    """Rules beside the calibrated ones: the paper's, other forms of it, and the product's findings.

    What the product found was recorded while the runs were measured; the limits of the rules that
    are taken from there are the same now.
    """
    table = study_alarms(runs, points)
    found = [json.loads(entry) for entry in table["findings"]]
    rules = {}
    for name in ("fhs", "fhs_relative", "fhs_trace", "fhs_conditional"):
        column = f"over {name}"
        table[column] = (table[name] > 1.0).where(table[name].notna())
        rules[f"{name} > 1"] = column
    for name in ("dead-experts", "router-locked", "router-uniform", "logit-explosion",
                 "near-ties", "heterogeneity-above-init", "heterogeneity-rising",
                 "balancing-inactive"):  # fmt: skip
        table[f"found {name}"] = [name in f for f in found]
        rules[name] = f"found {name}"
    return table, rules
