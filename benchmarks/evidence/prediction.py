"""Test which metrics at a decision predict that a run fails: the primary hypothesis, and others.

Legend: N runs, F features, B draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from benchmarks.evidence.auc import Auc, Resampling, holm, stratified_auc

PRIMARY_AT = 0.1
# Scale-free stand-ins that need nothing of other runs: losses over the task's unigram loss, scores
# as logarithms.
VALIDATION, COLLAPSE, SCORE = "validation.relative", "collapse", "fhs_trace.log"
PRIMARY_BASE, PRIMARY_FULL = (VALIDATION,), (VALIDATION, COLLAPSE, SCORE)
# Combinations that are tried beside the primary one.
SETS: dict[str, tuple[str, ...]] = {
    "validation loss": PRIMARY_BASE,
    "validation loss + collapse + fhs_trace": PRIMARY_FULL,
    "validation loss + its slope + extrapolation": (
        VALIDATION, "log.loss_slope.relative", "log.loss_extrapolated.relative",
    ),
    "log alone (losses, slope, gradient norm, load, z)": (
        "log.training_loss.relative", "log.loss_slope.relative", "log.grad_norm.log",
        "log.load_cv", "log.router_z.log",
    ),
    "geometry alone (fsi, dispersion, collapse, information, fhs_trace)": (
        "fsi", "dispersion", COLLAPSE, "information", SCORE,
    ),
    "validation loss + log + geometry": (
        VALIDATION, "log.loss_slope.relative", "log.grad_norm.log", "log.load_cv", "fsi",
        "dispersion", COLLAPSE, "information", SCORE, "near_ties",
    ),
}  # fmt: skip
STRENGTH = 1.0  # of the ridge penalty on standardised features


@dataclass(frozen=True)
class Change:
    """The areas of two nested models and the change between them."""

    base: Auc
    full: Auc
    change: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        return (f"{self.base} to {self.full}: {self.change:+.3f} [{self.low:+.3f}, "
                f"{self.high:+.3f}], p = {self.p:.2g}")  # fmt: skip


def at_decision(runs: pd.DataFrame, points: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """Features of a decision, a row a run, with its labels; runs broken by then are left out."""
    own = points[np.isclose(points["fraction"], fraction)].set_index("name")
    own = own.drop(columns=[c for c in own.columns if c in runs.columns])
    table = runs.join(own, how="inner")
    return with_derived(table, fraction)


def with_derived(table: pd.DataFrame, fraction: float) -> pd.DataFrame:
    """The validation loss, and features on the scales of `SETS`."""
    found: dict[str, pd.Series] = {"validation": table[f"validation_{fraction:g}"]}
    found[VALIDATION] = np.log(found["validation"] / table["unigram"])
    for name in ("training_loss", "loss_slope", "loss_extrapolated"):
        found[f"log.{name}.relative"] = table[f"log.{name}"] / table["unigram"]
    for name in ("log.grad_norm", "log.router_z", "fhs", "fhs_trace", "fhs_relative",
                 "fhs_conditional"):  # fmt: skip
        with np.errstate(divide="ignore", invalid="ignore"):
            found[f"{name}.log"] = np.log(table[name]).replace([np.inf, -np.inf], np.nan)
    return table.assign(**found)


def numeric_features(table: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Names of what was measured at a decision; not labels, not settings, nothing twice."""
    settings = {"fraction", "routing", "performance", "findings", "probe_tokens",
                "collapse_by_router"}  # fmt: skip
    names = [
        name for name in table.columns
        if name not in runs.columns and name not in settings
        and not name.startswith(("routing_", "collapse_5", "collapse_1", "collapse_2",
                                 "collapse_4", "collapse_8"))
        and pd.api.types.is_numeric_dtype(table[name])
    ]  # fmt: skip
    again = table[names].T.duplicated()
    return [name for name in names if not again[name]]


def feature_areas(table: pd.DataFrame, features: Sequence[str], label: str) -> pd.DataFrame:
    """The area of each feature, high meaning failure, Holm over the features given."""
    resampling = Resampling.of(table["task"], table["base"])
    failed_N = table[label].to_numpy(bool)
    rows = []
    for name in features:
        area = stratified_auc(table[name].to_numpy(float), failed_N, table["task"], resampling)
        if area is not None:
            rows.append(
                {
                    "feature": name,
                    "auc": area.value,
                    "low": area.low,
                    "high": area.high,
                    "p": area.p,
                    "failed": area.positives,
                    "sound": area.negatives,
                }
            )
    return pd.DataFrame(rows)


def adjust(areas: pd.DataFrame) -> pd.DataFrame:
    """Holm over everything in a table of areas."""
    return areas.assign(p_holm=holm(areas["p"].tolist()))


def nested_change(
    table: pd.DataFrame, label: str, base: Sequence[str] = PRIMARY_BASE,
    full: Sequence[str] = PRIMARY_FULL, draws: int = 1000,
) -> Change:  # fmt: skip
    """Two logistic models, each predicting a task from the others; refitted in every draw.

    The p-value is two-sided: twice the smaller share of draws on either side of no change.
    """
    resampling = Resampling.of(table["task"], table["base"], draws)
    areas, values = [], []
    for features in (base, full):
        x_NF = matrix(table, features)
        score_N = leave_task_out(x_NF, table, label, np.ones(len(table)))
        area = stratified_auc(score_N, table[label].to_numpy(bool), table["task"], resampling)
        assert area is not None
        refitted = [
            weighted_area(leave_task_out(x_NF, table, label, w_N), table, label, w_N)
            for w_N in resampling.weights_BN
        ]
        values.append(np.array(refitted))
        low, high = np.nanquantile(values[-1], [0.025, 0.975])
        areas.append(Auc(area.value, float(low), float(high), area.p, area.positives,
                         area.negatives, values[-1]))  # fmt: skip
    return _change(areas, values)


def nested_transfer(
    known: pd.DataFrame, new: pd.DataFrame, label: str, base: Sequence[str] = PRIMARY_BASE,
    full: Sequence[str] = PRIMARY_FULL, draws: int = 1000,
) -> Change:  # fmt: skip
    """The same two models, fitted on `known` runs of other tasks alone, on new runs.

    Draws take bases of both tables; a new run is never fitted on.
    """
    both = pd.concat([known.assign(new=False), new.assign(new=True)])
    new_N = both["new"].to_numpy(bool)
    resampling = Resampling.of(both["task"] + np.where(new_N, " new", ""), both["base"], draws)
    areas, values = [], []
    for features in (base, full):
        x_NF = matrix(both, features)
        score_N = leave_task_out(x_NF, both, label, np.where(new_N, 0.0, 1.0))
        area = stratified_auc(
            score_N[new_N],
            both[label].to_numpy(bool)[new_N],
            both["task"][new_N],
            Resampling(resampling.weights_BN[:, new_N], resampling.freedom),
        )
        assert area is not None
        refitted = []
        for w_N in resampling.weights_BN:
            score_N = leave_task_out(x_NF, both, label, np.where(new_N, 0.0, w_N))
            refitted.append(weighted_area(score_N[new_N], both[new_N], label, w_N[new_N]))
        values.append(np.array(refitted))
        low, high = np.nanquantile(values[-1], [0.025, 0.975])
        areas.append(Auc(area.value, float(low), float(high), area.p, area.positives,
                         area.negatives, values[-1]))  # fmt: skip
    return _change(areas, values)


def _change(areas: list[Auc], values: list[np.ndarray]) -> Change:
    change_B = values[1] - values[0]
    change_B = change_B[np.isfinite(change_B)]
    low, high = np.quantile(change_B, [0.025, 0.975])
    tail = min((change_B <= 0).mean(), (change_B >= 0).mean())
    return Change(areas[0], areas[1], areas[1].value - areas[0].value, float(low), float(high),
                  float(min(1.0, 2 * max(tail, 1 / len(change_B)))))  # fmt: skip


def all_areas(
    decisions: Mapping[float, pd.DataFrame], runs: pd.DataFrame
) -> pd.DataFrame:  # fmt: skip
    """Every feature at every decision on development bases, Holm over all; beside it untouched."""
    known, new = [], []
    for fraction, table in decisions.items():
        apart = table["untouched"].astype(bool)
        names = numeric_features(table[~apart], runs)
        known.append(feature_areas(table[~apart], names, "failed").assign(at=fraction))
        own = feature_areas(table[apart], known[-1]["feature"].tolist(), "failed")
        new.append(own[["feature", "auc", "low", "high"]].assign(at=fraction))
    return adjust(pd.concat(known, ignore_index=True)).merge(
        pd.concat(new).rename(columns={n: f"untouched_{n}" for n in ("auc", "low", "high")}),
        on=["feature", "at"], how="left",
    )  # fmt: skip


def matrix(table: pd.DataFrame, features: Sequence[str]) -> np.ndarray:
    """Features as (N, F)."""
    return table[list(features)].to_numpy(float)


def leave_task_out(
    x_NF: np.ndarray, table: pd.DataFrame, label: str, weight_N: np.ndarray
) -> np.ndarray:
    """Each run's score from a model of the other tasks' runs; means and spreads are theirs too."""
    failed_N, task_N = table[label].to_numpy(bool), table["task"].to_numpy()
    score_N = np.full(len(table), np.nan)
    for task in np.unique(task_N):
        fit_N = (task_N != task) & (weight_N > 0)
        if len(set(failed_N[fit_N])) < 2:
            continue
        score_N[task_N == task] = fit_and_score(
            x_NF[fit_N], failed_N[fit_N], weight_N[fit_N], x_NF[task_N == task]
        )
    return score_N


def fit_and_score(
    x_NF: np.ndarray, failed_N: np.ndarray, weight_N: np.ndarray, new_MF: np.ndarray
) -> np.ndarray:
    """Log odds of new runs, from standardised features; what is missing is the median."""
    middle_F = np.nanmedian(x_NF, axis=0)
    x_NF, new_MF = (np.where(np.isfinite(x), x, middle_F) for x in (x_NF, new_MF))
    mean_F = np.average(x_NF, axis=0, weights=weight_N)
    spread_F = np.sqrt(np.average((x_NF - mean_F) ** 2, axis=0, weights=weight_N)) + 1e-12
    model = LogisticRegression(C=STRENGTH)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit((x_NF - mean_F) / spread_F, failed_N, sample_weight=weight_N)
    scores: np.ndarray = model.decision_function((new_MF - mean_F) / spread_F)
    return scores


def weighted_area(
    score_N: np.ndarray, table: pd.DataFrame, label: str, weight_N: np.ndarray
) -> float:
    """The stratified area with runs counted by weight."""
    area = stratified_auc(score_N, table[label].to_numpy(bool), table["task"],
                          Resampling(weight_N[None]))  # fmt: skip
    return float(area.draws[0]) if area is not None and len(area.draws) else float("nan")
