"""Areas under ROC curves within tasks, with bootstrap intervals over bases.

A pair counts where both runs are of one task: what separates tasks is no prediction. Every draw
takes whole bases, with all their runs, within each task.

Legend: N runs, P positives, M negatives, B draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, t

DRAWS = 1000
SEED = 11


@dataclass(frozen=True)
class Auc:
    """An area with its 95% interval; `p` is two-sided against 0.5, by Student's t."""

    value: float
    low: float
    high: float
    p: float
    positives: int
    negatives: int
    draws: np.ndarray

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Resampling:
    """How often each run counts in each draw, (B, N); `freedom` is bases less tasks."""

    weights_BN: np.ndarray
    freedom: int = 1

    @classmethod
    def of(cls, tasks: Sequence[str], bases: Sequence[str], draws: int = DRAWS) -> Resampling:
        """Draws of whole bases within tasks."""
        generator = np.random.default_rng(SEED)
        tasks_N, bases_N = np.asarray(tasks), np.asarray(bases)
        weights_BN = np.zeros((draws, len(tasks_N)))
        freedom = 0
        for task in sorted(set(tasks)):
            names = sorted(set(bases_N[tasks_N == task]))
            freedom += len(names) - 1
            counts = generator.multinomial(len(names), [1 / len(names)] * len(names), size=draws)
            for name, column in zip(names, counts.T, strict=True):
                weights_BN[:, bases_N == name] = column[:, None]
        return cls(weights_BN, max(freedom, 1))


def stratified_auc(
    score_N: np.ndarray, failed_N: np.ndarray, tasks: Sequence[str], resampling: Resampling
) -> Auc | None:
    """The share of pairs within a task in which the failed run scores higher, ties a half.

    None where no task has both kinds, or where the score is missing for over half of the runs.
    Runs without a score are left out.
    """
    tasks_N = np.asarray(tasks)
    known_N = np.isfinite(score_N)
    if known_N.mean() < 0.5:
        return None
    won = pairs = 0.0
    won_B = np.zeros(len(resampling.weights_BN))
    pairs_B = np.zeros_like(won_B)
    positives = negatives = 0
    for task in sorted(set(tasks)):
        own_N = known_N & (tasks_N == task)
        bad, good = np.flatnonzero(own_N & failed_N), np.flatnonzero(own_N & ~failed_N)
        if not len(bad) or not len(good):
            continue
        positives, negatives = positives + len(bad), negatives + len(good)
        wins_PM = (score_N[bad, None] > score_N[None, good]) + 0.5 * (
            score_N[bad, None] == score_N[None, good]
        )
        won, pairs = won + wins_PM.sum(), pairs + wins_PM.size
        bad_BP, good_BM = resampling.weights_BN[:, bad], resampling.weights_BN[:, good]
        won_B += np.einsum("bm,bm->b", bad_BP @ wins_PM, good_BM)
        pairs_B += bad_BP.sum(1) * good_BM.sum(1)
    if not pairs:
        return None
    draws = won_B[pairs_B > 0] / pairs_B[pairs_B > 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    error = float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
    value = float(won / pairs)
    p = float(2 * t.sf(abs(value - 0.5) / error, resampling.freedom)) if error else 1.0
    return Auc(value, float(low), float(high), p, positives, negatives, draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment: p-values that hold for all of a family."""
    order = np.argsort(p_values)
    adjusted, worst = [1.0] * len(order), 0.0
    for rank, place in enumerate(order):
        worst = max(worst, min(1.0, p_values[place] * (len(order) - rank)))
        adjusted[place] = worst
    return adjusted


def clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    """The exact 95% interval of a share."""
    if not count:
        return 0.0, 1.0
    low = 0.0 if not hits else float(beta.ppf(0.025, hits, count - hits + 1))
    high = 1.0 if hits == count else float(beta.ppf(0.975, hits + 1, count - hits))
    return low, high


def share(hits: int, count: int) -> str:
    """A share in words: "12 of 40 (0.30 [0.17, 0.47])"."""
    if not count:
        return "0 of 0"
    low, high = clopper_pearson(hits, count)
    return f"{hits} of {count} ({hits / count:.2f} [{low:.2f}, {high:.2f}])"
