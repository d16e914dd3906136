"""Compare rules with outcomes of runs: detection, prediction, and stopping early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evidence.auc import share
from benchmarks.evidence.calibration import Rates
from benchmarks.evidence.settings import FRACTIONS
from benchmarks.evidence.table import is_diverged


def with_state(rows: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Alarm rows with what label tokens say of the same checkpoint: collapsed, diverged, clean.

    Diverged as a run is, with the checkpoints up to this one.
    """
    collapsed, diverged = [], []
    for name, fraction in rows[["name", "fraction"]].itertuples(index=False):
        run = runs.loc[name]
        collapsed.append(bool(run[f"collapsed_{fraction:g}"]))
        losses = [run[f"loss_{f:g}"] for f in FRACTIONS if f <= fraction + 1e-9]
        diverged.append(is_diverged(losses, run["unigram"]))
    table = rows.assign(collapsed_now=collapsed, diverged_now=diverged)
    return table.assign(clean=~table["collapsed_now"] & ~table["diverged_now"])


def rates_table(
    table: pd.DataFrame, rules: Mapping[str, str], label: str, fractions: Sequence[float],
    only: str | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Rates of rules (name -> column of alarms) against a label, a row a rule and decision."""
    rows: list[dict[str, Any]] = []
    for name, column in rules.items():
        for fraction in fractions:
            own = table[np.isclose(table["fraction"], fraction)]
            if only is not None:
                own = own[own[only].astype(bool)]
            own = own[own[column].notna()]
            if not len(own):
                continue
            rates = Rates.of(own[column].astype(bool), own[label].astype(bool))
            rows.append({
                "rule": name, "at": fraction, "checkpoints": len(own),
                "precision": share(*rates.precision), "recall": share(*rates.recall),
                "false alarms": share(*rates.false_positive_rate), "rates": rates,
            })  # fmt: skip
    return pd.DataFrame(rows)


def stopping_value(table: pd.DataFrame, column: str, fractions: Sequence[float]) -> pd.DataFrame:
    """What stopping at an alarm saves: share of all compute, failed runs stopped, sound ones lost.

    Every run is stopped at its first alarm among the decisions up to the one given.
    """
    rows = []
    names = sorted(set(table["name"]))
    failed = table.drop_duplicates("name").set_index("name")["failed"]
    for until in fractions:
        own = table[(table["fraction"] <= until + 1e-9) & table[column].astype(bool)]
        first = own.groupby("name")["fraction"].min()
        stopped = pd.Series({n: first.get(n, np.nan) for n in names})
        saved = (1 - stopped).fillna(0.0)
        is_failed = failed.loc[names].astype(bool).to_numpy()
        hit = stopped.notna().to_numpy()
        failing = int((hit & is_failed).sum()), int(is_failed.sum())
        sound = int((hit & ~is_failed).sum()), int((~is_failed).sum())
        rows.append({
            "until": until, "runs": len(names), "saved": float(saved.mean()),
            "failed stopped": share(*failing), "failed_counts": failing,
            "sound stopped": share(*sound), "sound_counts": sound,
        })  # fmt: skip
    return pd.DataFrame(rows)
