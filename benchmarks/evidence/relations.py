"""Relate FSI to performance, diagonal to whole Fisher, and small probes to the default one.

Legend: N runs, B draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import pearsonr, rankdata, spearmanr

from benchmarks.evidence.auc import Resampling

DRAWS = 1000


@dataclass(frozen=True)
class Pairs:
    """Two numbers of each run and its task, as arrays (N,)."""

    x_N: np.ndarray
    y_N: np.ndarray
    task_N: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, x: str, y: str) -> Pairs:
        """From columns."""
        codes = pd.factorize(table["task"])[0]
        return cls(table[x].to_numpy(float), table[y].to_numpy(float), codes)

    def take(self, place_N: np.ndarray) -> Pairs:
        """Some runs, as often as they are named."""
        return Pairs(self.x_N[place_N], self.y_N[place_N], self.task_N[place_N])


Statistic = Callable[[Pairs], float]


def resampled(
    table: pd.DataFrame, x: str, y: str, statistic: Statistic, draws: int = DRAWS
) -> tuple[float, float, float]:
    """A statistic with its 95% interval from draws of whole bases within tasks."""
    weights_BN = Resampling.of(table["task"], table["base"], draws).weights_BN.astype(int)
    pairs, places = Pairs.of(table, x, y), np.arange(len(table))
    values = [statistic(pairs.take(np.repeat(places, w_N))) for w_N in weights_BN]
    low, high = np.nanquantile(values, [0.025, 0.975])
    return statistic(pairs), float(low), float(high)


def correlation(pairs: Pairs) -> float:
    """Pearson's."""
    x_N, y_N = pairs.x_N - pairs.x_N.mean(), pairs.y_N - pairs.y_N.mean()
    scale = np.sqrt((x_N**2).sum() * (y_N**2).sum())
    return float((x_N * y_N).sum() / scale) if scale else float("nan")


def within_tasks(pairs: Pairs) -> float:
    """Pearson's after each task's mean is taken off both."""
    return correlation(
        Pairs(_centred(pairs.x_N, pairs.task_N), _centred(pairs.y_N, pairs.task_N), pairs.task_N)
    )


def rank_within(pairs: Pairs) -> float:
    """Pearson's of ranks within tasks, as shares of the task's runs."""
    ranks = []
    for values_N in (pairs.x_N, pairs.y_N):
        rank_N = np.empty(len(values_N))
        for task in np.unique(pairs.task_N):
            own = pairs.task_N == task
            rank_N[own] = rankdata(values_N[own]) / own.sum()
        ranks.append(rank_N)
    return within_tasks(Pairs(ranks[0], ranks[1], pairs.task_N))


def bend(pairs: Pairs) -> tuple[float, float]:
    """The squared term's coefficient, and the variance that it adds to a line, within tasks."""
    x_N = _scaled(pairs.x_N, pairs.task_N)
    y_N = _scaled(pairs.y_N, pairs.task_N)
    line, curve = np.polyfit(x_N, y_N, 1), np.polyfit(x_N, y_N, 2)
    total = float((y_N**2).sum())
    left = [float(((np.polyval(c, x_N) - y_N) ** 2).sum()) for c in (line, curve)]
    return float(curve[0]), (left[0] - left[1]) / total


def _centred(values_N: np.ndarray, task_N: np.ndarray) -> np.ndarray:
    counts = np.maximum(np.bincount(task_N), 1)
    centred: np.ndarray = values_N - (np.bincount(task_N, values_N) / counts)[task_N]
    return centred


def _scaled(values_N: np.ndarray, task_N: np.ndarray) -> np.ndarray:
    centred_N = _centred(values_N, task_N)
    counts = np.maximum(np.bincount(task_N), 1)
    spread = np.sqrt(np.bincount(task_N, centred_N**2) / counts)
    scaled: np.ndarray = centred_N / (spread[task_N] + 1e-12)
    return scaled


def fsi_performance(
    stages: Sequence[tuple[float, pd.DataFrame]], feature: str = "fsi"
) -> pd.DataFrame:
    """How a feature at each stage goes with final performance: by task, within tasks, pooled.

    `bend` is the coefficient of the squared, standardised feature beside the linear one (negative
    for an inverted U), within tasks; `gain` the share of variance that it adds.
    """
    statistics: dict[str, Statistic] = {
        "within": within_tasks, "ranks": rank_within, "pooled": correlation,
        "bend": lambda pairs: bend(pairs)[0],
    }  # fmt: skip
    rows = []
    for fraction, table in stages:
        known = table[np.isfinite(table[feature])]
        row: dict[str, object] = {"stage": fraction, "runs": len(known)}
        for task, own in known.groupby("task"):
            row[str(task)] = correlation(Pairs.of(own, feature, "performance"))
        for name, statistic in statistics.items():
            row[name], row[f"{name}_low"], row[f"{name}_high"] = resampled(
                known, feature, "performance", statistic
            )
        row["gain"] = bend(Pairs.of(known, feature, "performance"))[1]
        rows.append(row)
    return pd.DataFrame(rows)


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
    """How often a small probe says what the default one does: routing axis, and collapse alone.

    Of tasks whose whole probe is at least twice the largest size; `found` are the checkpoints that
    the small probe calls failing, of those that the whole one does.
    """
    own = points[points[f"routing_{sizes[0]}"].notna()]
    own = own[own["probe_tokens"] >= 2 * max(sizes)]
    collapse = own["findings"].str.contains('"router-collapse": "failing"')
    rows = []
    for size in sizes:
        small = own[f"collapse_{size}"].fillna("") == "failing"
        rows.append({
            "tokens": size,
            "checkpoints": len(own),
            "routing": int((own[f"routing_{size}"] == own["routing"]).sum()),
            "collapse": int((small == collapse).sum()),
            "found": int((small & collapse).sum()),
            "failing": int(collapse.sum()),
        })  # fmt: skip
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
