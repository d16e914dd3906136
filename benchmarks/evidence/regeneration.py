"""Write the data files that the verdict reads from the committed tables, reproducibly.

calibration.toml holds limits and measured rates of rules, recoveries.toml what interventions did
beside their controls. Limits are fitted on development bases; rates are those of untouched bases.
"""

from __future__ import annotations

import json
import tomllib
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evidence import calibration, policies, recoveries
from benchmarks.evidence.alarms import alarm_rows, rule_columns, study_alarms
from benchmarks.evidence.calibration import Rates
from benchmarks.evidence.settings import DECISIONS
from benchmarks.evidence.table import FOLDER, LOST, is_diverged, read_runs, read_table
from moegeo_cli.verdict.thresholds import FOLDER as DATA
from moegeo_cli.verdict.thresholds import forget

RATES_AT, STOPPED_BY, DIVERGED_AT, SPIKE_AT = 0.1, 0.2, 0.2, 0.5
WRITTEN = (
    "# Written by `python -m benchmarks.evidence regenerate`; docs/results/evidence.md says how.\n"
)
STUDY = "evidence study (docs/results/evidence.md)"
RECOVERIES = """\
# By finding and intervention: restarts that recovered, of n, and those of the control on the same
# runs and seeds; the difference of the shares, and that of performance (1 is the task's best),
# with 95% intervals; restarts that end collapsed. For stopping: the share of all compute that it
# saves on untouched bases, and the runs that it stops, of those that would have failed and of
# those that would not.
"""
RATES_OF = "untouched runs at 10% of training"
# The limit of the log's rise is not fitted: it is the one that thresholds.toml ships.
RISE = 0.2
# Between the highest rate of the sound bases (0.007) and those of the runs that diverge by it.
HIGH_RATE = 0.01
# The cell that stands for the limit where one number is shown.
SHOWN_CELL = (8, 2)


def regenerate(*, check: bool = False) -> int:
    """Write both files; with `check` write nothing and return 1 where one would change."""
    changed = []
    # In this order: what stopping saves follows from the limits.
    for name, make in (
        ("calibration.toml", calibration_text), ("recoveries.toml", recoveries_text),
    ):  # fmt: skip
        text, path = make(), DATA / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        changed.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
            forget()
    words = "differs" if check else "written"
    print("\n".join(f"{name} {words}" for name in changed) or f"nothing {words}")
    return 1 if check and changed else 0


def calibration_text() -> str:
    """calibration.toml."""
    runs, points = read_runs(), read_table("points")
    rows = policies.with_state(alarm_rows(runs, points, lambda e, k: 1.0, 1.0, RISE), runs)
    later = rows[rows["fraction"] >= calibration.FITTED_FROM - 1e-9]
    known, new = later[~later["untouched"]], later[later["untouched"]]
    at = new[np.isclose(new["fraction"], RATES_AT)]
    study = f"{STUDY}: at most 5% false alarms on tasks left out"
    quantile, left_out = calibration.choose_quantile(
        known, "collapsed_now", calibration.fit_collapse, calibration.collapse_alarms
    )
    limit = calibration.fit_collapse(known, quantile)
    cells = calibration.cell_values(limit, known)
    shown = next(c for c in cells if (c["experts"], c["top_k"]) == SHOWN_CELL)
    found: dict[str, dict[str, Any]] = {
        "router-collapse": {
            "value": shown["value"],
            "unit": "collapse less its null, at E = 8 and K = 2",
            "source": study,
            "rates": f"collapse now, {RATES_OF}",
            "quantile": quantile,
            "left_out_false_alarms": list(left_out.false_positive_rate),
            **Rates.of(calibration.collapse_alarms(at, limit), at["collapsed_now"]).to_data(),
            "cells": cells,
        }
    }
    decided = known[known["fraction"].isin(DECISIONS)]
    quantile, left_out = calibration.choose_quantile(
        decided, "failed", calibration.fit_gap, lambda table, most: (table["gap"] > most).to_numpy()
    )
    most = round(calibration.fit_gap(decided, quantile), 4)
    found["loss-behind-reference"] = {
        "value": most,
        "unit": "loss over the reference's, less 1",
        "source": study,
        "rates": f"failure at the end, {RATES_OF}",
        "quantile": quantile,
        "left_out_false_alarms": list(left_out.false_positive_rate),
        **Rates.of(at["gap"] > most, at["failed"]).to_data(),
    }
    found["loss-diverged"] = {
        "value": LOST,
        "unit": "of what the loss had gained on the unigram loss",
        "source": f"{STUDY}: its definition of divergence, asked early",
        "rates": f"failure at the end, untouched runs at {DIVERGED_AT:.0%} of training",
        **_divergence_rates(runs).to_data(),
    }
    found["learning-rate-high"] = {
        "value": HIGH_RATE,
        "unit": "peak learning rate of AdamW",
        "source": f"{STUDY}: over it half of all runs fail or more",
        "rates": "failure at the end, untouched runs",
        **_high_rates(runs).to_data(),
    }
    found |= _other_rates(runs, points)
    head = (
        f"{WRITTEN}# Rows without a value are rates of rules whose limit is in thresholds.toml.\n"
    )
    return head + "".join(_section(name, row) for name, row in found.items())


def _high_rates(runs: pd.DataFrame) -> Rates:
    """Of a peak learning rate over the limit for failing at the end."""
    new = runs[runs["untouched"]]
    return Rates.of(new["train_learning_rate"] > HIGH_RATE, new["failed"])


def _divergence_rates(runs: pd.DataFrame) -> Rates:
    """Of a validation loss that is lost, or not under the unigram loss, for failing at the end."""
    new = runs[runs["untouched"]]
    columns = [f"validation_{f:g}" for f in DECISIONS if f <= DIVERGED_AT + 1e-9]
    alarms = [
        is_diverged(own, unigram)
        for own, unigram in zip(new[columns].to_numpy(float), new["unigram"], strict=True)
    ]
    return Rates.of(alarms, new["failed"])


def read_quantiles() -> dict[str, float]:
    """The quantile that each limit was fitted at."""
    rows = tomllib.loads((DATA / "calibration.toml").read_text(encoding="utf-8"))
    return {name: row["quantile"] for name, row in rows.items() if "quantile" in row}


def _other_rates(runs: pd.DataFrame, points: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Rates of rules that were not fitted: against failure, on untouched bases.

    They are asked at 10% of training, a loss spike at half of it: before that a log is too short.
    The rate of FHS is of the point, as the paper's policy judges it.
    """
    table, rules = rule_columns(runs, points)
    table = table[table["untouched"]]
    columns = {name: (column, RATES_AT) for name, column in rules.items() if name in RATED}
    columns["heterogeneity-above-init"] = (rules["fhs > 1"], RATES_AT)
    columns["loss-spike"] = ("spike", SPIKE_AT)
    found = {}
    for name, (column, fraction) in sorted(columns.items()):
        asked = table[np.isclose(table["fraction"], fraction)]
        found[name] = {
            "rates": f"failure at the end, untouched runs at {fraction:.0%} of training",
            **Rates.of(asked[column].fillna(False), asked["failed"]).to_data(),
        }
    return found


RATED = ("dead-experts", "router-locked", "router-uniform", "logit-explosion", "near-ties",
         "heterogeneity-rising")  # fmt: skip


def recoveries_text() -> str:
    """recoveries.toml."""
    head = WRITTEN + RECOVERIES
    head += _stopping_text()
    if not (FOLDER / "restarts.csv.gz").exists():
        return head
    effects = recoveries.arm_effects(recoveries.with_outcomes(read_table("restarts"), read_runs()))
    blocks = []
    for _, row in effects.sort_values(["arm", "kind"]).iterrows():
        if row["arm"] == "control":
            continue
        blocks.append(
            "\n[[recovery]]\n"
            f"intervention = {json.dumps(row['arm'])}\n"
            f"finding = {json.dumps(row['kind'])}\n"
            f"recovered = {row['recovered']}\n"
            f"recovered_control = {row['recovered_control']}\n"
            f"n = {row['n']}\n"
            f"runs = {row['runs']}\n"
            + _estimate("difference", "interval", row, "difference")
            + _estimate("performance", "performance_interval", row, "gain")
            + f"collapsed = {row['collapsed']}\n"
            f"collapsed_control = {row['collapsed_control']}\n"
        )
    return head + "".join(blocks)


def _stopping_text() -> str:
    """What stopping at the loss's alarm would have saved, within the first fifth of training."""
    alarms = study_alarms(read_runs(), read_table("points"))
    own = alarms[alarms["untouched"] & (alarms["fraction"] >= calibration.FITTED_FROM - 1e-9)]
    [row] = policies.stopping_value(own, "gap_alarm", (STOPPED_BY,)).to_dict("records")
    return (
        '\n[[recovery]]\nintervention = "stop"\nfinding = "loss-behind-reference"\n'
        f"saved = {_number(row['saved'])}\n"
        f"stopped_failing = {list(row['failed_counts'])}\n"
        f"stopped_sound = {list(row['sound_counts'])}\n"
    )


def _estimate(name: str, interval: str, row: pd.Series, column: str) -> str:
    """A number and its interval, if it has one."""
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    text = f"{name} = {_number(row[column])}\n"
    return text if np.isnan(low) else text + f"{interval} = [{_number(low)}, {_number(high)}]\n"


def _section(name: str, row: dict[str, Any]) -> str:
    cells = row.pop("cells", ())
    lines = [f"\n[{name}]"]
    lines += [f"{key} = {json.dumps(value)}" for key, value in row.items()]
    for cell in cells:
        lines.append(f"[[{name}.cells]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in cell.items()]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return json.dumps(round(float(value), 3) + 0.0)  # no "-0.0"
