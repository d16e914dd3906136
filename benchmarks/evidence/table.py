"""Write and read the results as small committed tables, and derive the labels from them.

`runs.csv.gz` has a row a run, `points.csv.gz` one a run and decision, `exact.csv.gz` one a router,
`restarts.csv.gz` one a restart. Numbers have six digits. All analyses read these tables alone, so
they can be done again, or otherwise, without training anything; `areas.csv.gz` is what they say of
every feature.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evidence.settings import FRACTIONS

FOLDER = Path(__file__).parent / "results"
# A run fails where its performance is under this share of the task's best, and under its own base's
# healthy seeds by more than so many of the task's standard deviations between healthy seeds.
FAILURE, SEED_DEVIATIONS = 0.85, 3.0
# A run has diverged where its loss is not finite, ends over the unigram loss, or ends over its
# lowest checkpoint by more than this share of what that had gained on the unigram loss.
LOST = 0.1


def build_tables(work: Path) -> dict[str, pd.DataFrame]:
    """The main runs' tables, from the records of a study's folder."""
    records = [json.loads(p.read_text()) for p in sorted((work / "records").glob("*.json"))]
    return {
        "runs": pd.DataFrame([_run_row(r) for r in records]),
        "points": pd.DataFrame([row for r in records for row in _point_rows(r)]),
        "exact": pd.DataFrame(
            [{"name": r["run"]["name"], "task": r["run"]["task"], **row}
             for r in records for row in r["exact"]]
        ),
    }  # fmt: skip


def table_bytes(table: pd.DataFrame) -> bytes:
    """A table as it is kept, the same bytes for the same numbers."""
    text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(text.encode())
    return buffer.getvalue()


def write_table(name: str, table: pd.DataFrame) -> None:
    """Keep one table."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.csv.gz").write_bytes(table_bytes(table))


def read_table(name: str) -> pd.DataFrame:
    """One table."""
    return pd.read_csv(FOLDER / f"{name}.csv.gz").copy()  # whole again: its columns come in pieces


def read_runs() -> pd.DataFrame:
    """The runs with their labels, by name."""
    return add_labels(read_table("runs").set_index("name", drop=False))


def _run_row(record: dict[str, Any]) -> dict[str, Any]:
    run = record["run"]
    row: dict[str, Any] = {key: run[key] for key in (
        "name", "base", "configuration", "kind", "task", "seed", "untouched"
    )}  # fmt: skip
    row |= {f"model_{key}": value for key, value in run["model"].items()}
    row |= {f"train_{key}": value for key, value in run["train"].items()}
    row |= {"unigram": record["unigram"], "broken_at": record["broken_at"],
            "train_seconds": record["train_seconds"], "seconds": record["seconds"],
            "steps": record["steps"]}  # fmt: skip
    by_step = {o["step"]: o for o in record["outcomes"]}
    for fraction in (0.0, *FRACTIONS):
        outcome = by_step.get(round(fraction * record["steps"]))
        for key in ("loss", "validation", "load_entropy", "dead_share", "collapsed"):
            row[f"{key}_{fraction:g}"] = None if outcome is None else outcome[key]
    row["label_tokens"] = record["outcomes"][0]["tokens"]
    return row


def _point_rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for point in record["points"]:
        row = {"name": record["run"]["name"], "fraction": point["fraction"]}
        verdict = point["verdict"]
        row |= {"routing": verdict["routing"], "performance": verdict["performance"],
                "findings": json.dumps(verdict["findings"], sort_keys=True),
                "probe_tokens": point["probe_tokens"],
                "collapse_by_router": json.dumps(
                    [[None if v is None else float(f"{v:.6g}") for v in r]
                     for r in point["collapse_by_router"]]
                )}  # fmt: skip
        for size, small in point.get("by_tokens", {}).items():
            row[f"routing_{size}"] = small["routing"]
            row[f"collapse_{size}"] = small["findings"].get("router-collapse", "")
        rows.append(row | point["features"])
    return rows


def add_labels(runs: pd.DataFrame) -> pd.DataFrame:
    """Performance, and whether a run failed, diverged, collapsed."""
    runs = runs.copy()
    final = runs["loss_1"].where(runs["broken_at"].isna())
    best = final.groupby(runs["task"]).transform("min")
    runs["performance"] = ((runs["unigram"] - final) / (runs["unigram"] - best)).fillna(0.0)
    healthy = runs[runs["kind"] == "healthy"]
    spread = {
        task: math.sqrt(own.groupby("base")["performance"].var(ddof=1).mean())
        for task, own in healthy.groupby("task")
    }
    runs["seed_spread"] = runs["task"].map(spread)
    runs["base_performance"] = [_others(row, healthy) for _, row in runs.iterrows()]
    runs["behind_base"] = runs["performance"] < (
        runs["base_performance"] - SEED_DEVIATIONS * runs["seed_spread"]
    )
    runs["failed"] = (runs["performance"] < FAILURE) & runs["behind_base"]
    losses = runs[[f"loss_{f:g}" for f in FRACTIONS]].to_numpy(float)
    runs["diverged"] = runs["broken_at"].notna() | np.array(
        [is_diverged(own, unigram) for own, unigram in zip(losses, runs["unigram"], strict=True)]
    )
    runs["collapsed"] = runs["collapsed_1"].fillna(False).astype(bool)
    runs["outcome"] = np.select(
        [runs["diverged"] & runs["failed"], runs["collapsed"] & runs["failed"], runs["failed"],
         runs["collapsed"]],
        ["failed: diverged", "failed: collapsed", "failed: behind", "collapsed alone"],
        "sound",
    )  # fmt: skip
    return runs


def is_diverged(losses: Sequence[float], unigram: float) -> bool:
    """Whether the last of a run's losses so far says so; see LOST."""
    last, lowest = losses[-1], min((v for v in losses if math.isfinite(v)), default=unigram)
    gained = max(unigram - lowest, 0.0)
    return not math.isfinite(last) or last >= unigram or last > lowest + LOST * gained


def _others(row: pd.Series, healthy: pd.DataFrame) -> float:
    """Mean performance of the base's healthy seeds, a run's own left out."""
    own = healthy[(healthy["base"] == row["base"]) & (healthy["name"] != row["name"])]
    return float(own["performance"].mean())
