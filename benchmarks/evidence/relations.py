"""FSI and performance, the diagonal beside the whole Fisher, small probes beside the default one.

Legend: N runs, B draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, rankdata, spearmanr

from benchmarks.evidence.auc import Resampling, share

DRAWS = 1000


def resampled(
    table: pd.DataFrame, statistic: Callable[[pd.DataFrame], float], draws: int = DRAWS
) -> tuple[float, float, float]:
    """A statistic with its 95% interval from draws of whole bases within tasks."""
    weights_BN = Resampling.of(table["task"], table["base"], draws).weights_BN.astype(int)
    places = np.arange(len(table))
    values = [statistic(table.iloc[np.repeat(places, w_N)]) for w_N in weights_BN]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return statistic(table), float(low), float(high)


def correlation(table: pd.DataFrame, x: str, y: str) -> float:
    """Pearson's."""
    return float(pearsonr(table[x], table[y])[0]) if len(table) > 2 else float("nan")


def within_tasks(table: pd.DataFrame, x: str, y: str) -> float:
    """Pearson's after each task's mean is taken off both."""
    centred = table[[x, y]] - table.groupby("task")[[x, y]].transform("mean")
    return correlation(centred, x, y)


def rank_within(table: pd.DataFrame, x: str, y: str) -> float:
    """Spearman's of ranks within tasks."""
    ranks = pd.DataFrame(
        {name: table.groupby("task")[name].transform(lambda v: rankdata(v) / len(v))
         for name in (x, y)}
    )  # fmt: skip
    return correlation(ranks, x, y)


def fsi_performance(
    stages: Sequence[tuple[float, pd.DataFrame]], feature: str = "fsi"
) -> pd.DataFrame:
    """How a feature at each stage goes with final performance: by task, within tasks, pooled.

    `bend` is the coefficient of the squared, standardised feature beside the linear one (negative
    for an inverted U), within tasks; `gain` the share of variance that it adds.
    """
    rows = []
    for fraction, table in stages:
        known = table[np.isfinite(table[feature])]
        row: dict[str, object] = {"stage": fraction, "runs": len(known)}
        for task, own in known.groupby("task"):
            row[str(task)] = correlation(own, feature, "performance")
        for name, statistic in (("within", within_tasks), ("ranks", rank_within),
                                ("pooled", correlation)):  # fmt: skip
            row[name], row[f"{name}_low"], row[f"{name}_high"] = resampled(
                known,
                lambda t, s=statistic: s(t, feature, "performance"),  # type: ignore[misc]
            )
        row["bend"], row["bend_low"], row["bend_high"] = resampled(
            known, lambda t: bend(t, feature)[0]
        )
        row["gain"] = bend(known, feature)[1]
        rows.append(row)
    return pd.DataFrame(rows)


def bend(table: pd.DataFrame, feature: str) -> tuple[float, float]:
    """The squared term's coefficient, and the variance that it adds to a line, within tasks."""
    centred = table.groupby("task")[[feature, "performance"]].transform(
        lambda v: (v - v.mean()) / (v.std() + 1e-12)
    )
    x_N, y_N = centred[feature].to_numpy(), centred["performance"].to_numpy()
    line = np.polyfit(x_N, y_N, 1)
    curve = np.polyfit(x_N, y_N, 2)
    total = float((y_N**2).sum())
    gain = float(((np.polyval(line, x_N) - y_N) ** 2).sum()
                 - ((np.polyval(curve, x_N) - y_N) ** 2).sum()) / total  # fmt: skip
    return float(curve[0]), gain


def diagonal_and_whole(exact: pd.DataFrame) -> pd.DataFrame:
    """Correlations over routers of heterogeneity by the diagonal with that by whole matrices."""
    rows = []
    for (kind, width), own in exact.groupby(["kind", "width"]):
        for form in ("", "_relative"):
            one, other = own[f"diagonal{form}"], own[f"full{form}"]
            known = np.isfinite(one) & np.isfinite(other) & (one > 0) & (other > 0)
            if known.sum() < 8:
                continue
            rows.append({
                "kind": kind, "width": int(width), "form": "relative" if form else "absolute",
                "routers": int(known.sum()),
                "pearson": float(pearsonr(one[known], other[known])[0]),
                "pearson_log": float(pearsonr(np.log(one[known]), np.log(other[known]))[0]),
                "spearman": float(spearmanr(one[known], other[known])[0]),
                "share": float(own.loc[known, "share"].median()),
            })  # fmt: skip
    return pd.DataFrame(rows)


def probe_agreement(points: pd.DataFrame, sizes: Sequence[int]) -> pd.DataFrame:
    """How often a small probe says what the default one does: routing axis, and collapse alone."""
    rows = []
    own = points[points[f"routing_{sizes[0]}"].notna()]
    collapse = own["findings"].str.contains('"router-collapse": "failing"')
    for size in sizes:
        same = own[f"routing_{size}"] == own["routing"]
        small = own[f"collapse_{size}"].fillna("") == "failing"
        rows.append(
            {
                "tokens": size,
                "checkpoints": len(own),
                "routing": int(same.sum()),
                "collapse": int((small == collapse).sum()),
                "words": share(int(same.sum()), len(own)),
                "collapse_words": share(int((small == collapse).sum()), len(own)),
            }
        )
    return pd.DataFrame(rows)


def variance_parts(runs: pd.DataFrame, column: str) -> pd.DataFrame:
    """Of each task: the variance between bases, between a base's causes, between seeds.

    Between seeds: the mean variance within configurations; the others by subtraction of what the
    averages below them still carry of it.
    """
    rows = []
    for task, own in runs.groupby("task"):
        seeds = own.groupby("configuration")[column]
        within = float(seeds.var(ddof=1).mean())
        count = float(seeds.size().mean())
        means = own.groupby(["base", "configuration"])[column].mean()
        causes = max(float(means.groupby("base").var(ddof=1).mean()) - within / count, 0.0)
        per_base = float(means.groupby("base").size().mean())
        bases = means.groupby("base").mean().var(ddof=1) - causes / per_base
        rows.append({"task": task, "seeds": within, "causes": causes,
                     "bases": max(float(bases) - within / count / per_base, 0.0)})  # fmt: skip
    return pd.DataFrame(rows)
