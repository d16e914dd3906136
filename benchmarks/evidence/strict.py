"""Test whether the strictest definition of collapse predicts failure, for docs/concepts/verdict.md.

Strict: in a router, under 1.5·K effective experts or under a quarter of E, at a decision and at the
one before. Effective experts are exp of the load's entropy on label tokens, of the worst router.

Legend: E experts, K chosen per token.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.evidence.table import read_runs

DECISION, BEFORE = "0.2", "0.1"


def count_strict(
    runs: pd.DataFrame, decision: str = DECISION, before: str = BEFORE
) -> tuple[int, int]:
    """Runs that failed in the end, of those that are strictly collapsed at both decisions."""
    strict = _strict(runs, decision) & _strict(runs, before)
    return int((strict & runs["failed"]).sum()), int(strict.sum())


def print_strict() -> None:
    """One line a pair of decisions."""
    runs = read_runs()
    for decision, before in ((DECISION, BEFORE), ("0.5", DECISION)):
        failed, found = count_strict(runs, decision, before)
        print(f"at {float(decision):.0%} and {float(before):.0%}: {failed} of {found} failed")


def _strict(runs: pd.DataFrame, fraction: str) -> pd.Series:
    experts, top_k = runs["model_experts"], runs["model_top_k"]
    least, most = np.log(top_k), np.log(experts)
    effective = np.exp(runs[f"load_entropy_{fraction}"] * (most - least) + least)
    return (effective < 1.5 * top_k) | (effective < experts / 4.0)
