"""What the arms did, beside a control that went on as before.

Legend: N flagged runs, S seeds of data, B draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evidence.auc import share
from benchmarks.evidence.table import FAILURE, SEED_DEVIATIONS

DRAWS = 4000
SEED = 13


def with_outcomes(restarts: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Restarts with performance and whether they failed, by the main runs' own measures."""
    table = restarts.join(
        runs[["task", "base", "configuration", "untouched", "unigram", "base_performance",
              "seed_spread", "failed"]].rename(columns={"failed": "failed_before"}), on="run",
    )  # fmt: skip
    best = runs.groupby("task").apply(lambda own: own["loss_1"].min(), include_groups=False)
    loss = table["loss"].where(~table["broken"].astype(bool))
    table["performance"] = (
        (table["unigram"] - loss) / (table["unigram"] - table["task"].map(best))
    ).fillna(0.0)
    table["failed"] = (table["performance"] < FAILURE) & (
        table["performance"] < table["base_performance"] - SEED_DEVIATIONS * table["seed_spread"]
    )
    table["recovered"] = ~table["failed"]
    table["collapsed"] = table["collapsed"].fillna(False).astype(bool)
    return table


def arm_effects(table: pd.DataFrame) -> pd.DataFrame:
    """By kind and arm: recovered beside the control on the same runs and seeds.

    `difference` is the mean over runs of the share of seeds that recovered, less the control's;
    its interval is from draws of whole configurations. `..._failing` is of the runs that failed in
    every seed of the control, `gain` the mean difference of performance.
    """
    rows: list[dict[str, Any]] = []
    for kind, own in table.groupby("kind"):
        control = _by_run(own[own["arm"] == "control"])
        for arm, tried in own.groupby("arm"):
            runs = _by_run(tried)
            both = runs.join(control.add_suffix("_control"), how="inner")
            change_N = (both["recovered"] - both["recovered_control"]).to_numpy()
            gain_N = (both["performance"] - both["performance_control"]).to_numpy()
            failing = both["recovered_control"].to_numpy() == 0
            draws = _draws(both["configuration"].to_numpy())
            count = int(both["seeds"].sum())
            rows.append({
                "kind": kind, "arm": arm, "runs": len(both), "n": count,
                "configurations": both["configuration"].nunique(),
                "recovered": round((both["recovered"] * both["seeds"]).sum()),
                "recovered_control": round((both["recovered_control"] * both["seeds"]).sum()),
                **_interval("difference", change_N, draws),
                "failing": int(failing.sum()),
                "recovered_failing": round((both["recovered"] * both["seeds"])[failing].sum()),
                "n_failing": int(both["seeds"][failing].sum()),
                **_interval("gain", gain_N, draws),
                "collapsed": round((both["collapsed"] * both["seeds"]).sum()),
                "collapsed_control": round((both["collapsed_control"] * both["seeds"]).sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _by_run(table: pd.DataFrame) -> pd.DataFrame:
    """Means over a run's seeds."""
    grouped = table.groupby("run")
    return pd.DataFrame({
        "configuration": grouped["configuration"].first(),
        "recovered": grouped["recovered"].mean(),
        "performance": grouped["performance"].mean(),
        "collapsed": grouped["collapsed"].mean(),
        "seeds": grouped.size(),
    })  # fmt: skip


def _draws(configuration_N: np.ndarray) -> np.ndarray:
    """How often each run counts in each draw of configurations, (B, N)."""
    generator = np.random.default_rng(SEED)
    names, place_N = np.unique(configuration_N, return_inverse=True)
    counts = generator.multinomial(len(names), [1 / len(names)] * len(names), size=DRAWS)
    weights: np.ndarray = counts[:, place_N].astype(float)
    return weights


def _interval(name: str, value_N: np.ndarray, weights_BN: np.ndarray) -> dict[str, float]:
    if not len(value_N):
        return {name: float("nan"), f"{name}_low": float("nan"), f"{name}_high": float("nan")}
    totals = weights_BN.sum(1)
    draws = (weights_BN @ value_N)[totals > 0] / totals[totals > 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {name: float(value_N.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def words(row: pd.Series) -> str:
    """A line of what an arm did."""
    return (
        f"{share(int(row['recovered']), int(row['n']))}, control "
        f"{int(row['recovered_control'])}; {row['difference']:+.2f} "
        f"[{row['difference_low']:+.2f}, {row['difference_high']:+.2f}]"
    )
