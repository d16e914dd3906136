"""Compare the arms of flagged runs with controls that were not changed.

Legend: N flagged runs, S seeds of data, B draws.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evidence.table import FAILURE, SEED_DEVIATIONS

DRAWS = 4000
SEED = 13
LEAST = 10  # configurations, for an interval
MEASURES = ("recovered", "performance", "collapsed")


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
    the main run, before any restart; `gain` the mean difference of performance. An interval is
    missing where fewer than LEAST configurations were tried, or where no outcome changed.
    """
    rows: list[dict[str, Any]] = []
    for kind, own in table.groupby("kind"):
        control = own.loc[own["arm"] == "control", ["run", "seed", *MEASURES]]
        for arm, tried in own.groupby("arm"):
            both = tried.merge(control, on=["run", "seed"], suffixes=("", "_control"))
            runs = _by_run(both)
            change_N = (runs["recovered"] - runs["recovered_control"]).to_numpy()
            gain_N = (runs["performance"] - runs["performance_control"]).to_numpy()
            configuration_N = runs["configuration"].to_numpy()
            failing = both[both["failed_before"].astype(bool)]
            rows.append({
                "kind": kind, "arm": arm, "runs": len(runs), "n": len(both),
                "configurations": runs["configuration"].nunique(),
                "recovered": int(both["recovered"].sum()),
                "recovered_control": int(both["recovered_control"].sum()),
                **_interval("difference", change_N, configuration_N),
                "n_failing": len(failing),
                "recovered_failing": int(failing["recovered"].sum()),
                "recovered_failing_control": int(failing["recovered_control"].sum()),
                **_interval("gain", gain_N, configuration_N),
                "collapsed": int(both["collapsed"].sum()),
                "collapsed_control": int(both["collapsed_control"].sum()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _by_run(table: pd.DataFrame) -> pd.DataFrame:
    """Means over a run's seeds, of an arm and of its control."""
    grouped = table.groupby("run")
    names = [n + suffix for n in ("recovered", "performance") for suffix in ("", "_control")]
    means = grouped[names].mean()
    return means.assign(configuration=grouped["configuration"].first())


def _interval(name: str, value_N: np.ndarray, configuration_N: np.ndarray) -> dict[str, float]:
    """The mean, and its 95% interval from draws of configurations."""
    names, place_N = np.unique(configuration_N, return_inverse=True)
    found = {name: float(value_N.mean()), f"{name}_low": np.nan, f"{name}_high": np.nan}
    if len(names) < LEAST or not value_N.any():
        return found
    generator = np.random.default_rng(SEED)
    counts = generator.multinomial(len(names), [1 / len(names)] * len(names), size=DRAWS)
    weights_BN = counts[:, place_N].astype(float)
    low, high = np.quantile(weights_BN @ value_N / weights_BN.sum(1), [0.025, 0.975])
    return found | {f"{name}_low": float(low), f"{name}_high": float(high)}
