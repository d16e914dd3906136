"""Uncertainty: sequences are resampled in groups, with the same draws for every router and run.

A statistic of a draw is computed from sums by group, weighted by how often each group was
drawn. Since all routers, checkpoints and runs of one probe share the draws, differences,
ratios, means and maxima over routers are formed draw by draw and keep their correlation.

Legend: S sequences, G groups, B draws.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from moegeo_cli.explanations.metrics import specs
from moegeo_cli.records import Metric

GROUPS = 32
DRAWS = 1000
LEVEL = 0.95
# An interval needs this share of its draws to have a value.
USABLE = 0.95


def group_sequences(count: int, seed: int = 0) -> np.ndarray:
    """Each sequence's group: a seeded shuffle into at most 32 groups of near equal size.

    Up to 32 sequences each are their own group; beyond that there are 17 to 32 groups.

    Args:
        count: S.
        seed: of the shuffle.

    Returns:
        Shape (S,), int64, groups numbered from 0.
    """
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    size = -(-count // GROUPS)
    groups = -(-count // size)
    groups_S = np.empty(count, dtype=np.int64)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    groups_S[order] = np.arange(count) % groups
    return groups_S


@dataclass(frozen=True)
class Draws:
    """Seeded bootstrap draws of groups. `counts_BG` says how often each draw took each group.

    With fewer than two groups there are no draws, and nothing that is computed from them
    has an interval.
    """

    groups_S: np.ndarray
    counts_BG: np.ndarray
    seed: int = 0

    @property
    def groups(self) -> int:
        """G."""
        return int(self.counts_BG.shape[1])

    def sum_by_group(self, values_S: np.ndarray) -> np.ndarray:
        """Sums over each group's sequences: (S, ...) becomes (G, ...)."""
        sums_G = np.zeros((self.groups, *values_S.shape[1:]))
        np.add.at(sums_G, self.groups_S, values_S)
        return sums_G

    def sum_draws(self, sums_G: np.ndarray) -> np.ndarray:
        """Sums over each draw's groups: (G, ...) becomes (B, ...)."""
        return np.asarray(np.tensordot(self.counts_BG, sums_G, axes=1))

    def sum_quadratic(self, gram_AGG: np.ndarray) -> np.ndarray:
        """The quadratic form of each draw's counts: (A, G, G) becomes (B, A)."""
        rows, columns = np.triu_indices(self.groups)
        packed_AP = gram_AGG[:, rows, columns] * np.where(rows == columns, 1.0, 2.0)
        return np.asarray(self._products_BP @ packed_AP.T)

    @functools.cached_property
    def _products_BP(self) -> np.ndarray:
        rows, columns = np.triu_indices(self.groups)
        return np.asarray(self.counts_BG[:, rows] * self.counts_BG[:, columns])

    def maxima(self, maxima_S: np.ndarray) -> np.ndarray:
        """Largest over each draw's groups: (S,) becomes (B,)."""
        maxima_G = np.full(self.groups, -np.inf)
        np.maximum.at(maxima_G, self.groups_S, maxima_S)
        return np.asarray(np.where(self.counts_BG > 0, maxima_G, -np.inf).max(axis=1))

    def predict_noise(self, residuals_NL: np.ndarray) -> np.ndarray:
        """Differences from their mean that one more draw like these N would have, shape (B, L).

        Multivariate t with the rows' own covariance, times 1 + 1/N: columns keep their
        correlation, and the same N and seed give the same draws whatever the columns are.

        Args:
            residuals_NL: N ≥ 2 rows, each less the mean row.
        """
        count = len(residuals_NL)
        generator = np.random.Generator(np.random.PCG64([self.seed, count]))
        normal_BN = generator.standard_normal((len(self.counts_BG), count))
        chi_B = generator.chisquare(count - 1, len(self.counts_BG)) / (count - 1)
        scale = np.sqrt((1.0 + 1.0 / count) / (count - 1) / chi_B)
        return np.asarray((normal_BN @ residuals_NL) * scale[:, None])


def make_draws(groups_S: np.ndarray, seed: int = 0, count: int = DRAWS) -> Draws:
    """Multinomial draws of as many groups as there are.

    Args:
        groups_S: each sequence's group, from `group_sequences`.
        seed: of the draws.
        count: B.
    """
    groups = int(groups_S.max()) + 1 if len(groups_S) else 0
    generator = np.random.Generator(np.random.PCG64(seed))
    if groups < 2:
        return Draws(groups_S, np.zeros((0, groups)), seed)
    counts_BG = generator.multinomial(groups, np.full(groups, 1.0 / groups), size=count)
    return Draws(groups_S, counts_BG.astype(np.float64), seed)


@dataclass(frozen=True)
class Estimate:
    """A value with its draws, from which intervals of anything built on it follow.

    `draws_B` is None where there is no interval; `null_B` are draws under balanced routing
    (or whatever null the statistic has), `reason` says why `value` is None, or what a
    run-level value leaves out.
    """

    value: float | None
    draws_B: np.ndarray | None = None
    n: int | None = None
    null_B: np.ndarray | None = None
    reason: str | None = None
    router: str | None = None
    unit: str | None = None  # where it depends on the router

    def metric(self, name: str) -> Metric:
        """The estimate as a record, with the unit and direction of `name` in the catalogue."""
        spec = specs()[name.removesuffix("_worst")]
        low, high = interval(self.draws_B, self.value)
        null = None if self.null_B is None or self.value is None else _finite_mean(self.null_B)
        return Metric(
            value=self.value,
            ci_low=low,
            ci_high=high,
            n=self.n,
            unit=self.unit or spec.unit,
            higher_is_better=spec.higher_is_better,
            null_value=null,
            reason=self.reason,
            router=self.router,
        )


def draws_from_jackknife(value: float, without_G: np.ndarray, draws: Draws) -> np.ndarray | None:
    """Bootstrap draws of a smooth statistic that is too expensive to compute a thousand times.

    Linear in how often each group was drawn, with the influences that leaving out one group at a
    time shows (the infinitesimal jackknife's approximation of the bootstrap).

    Args:
        value: the statistic of all groups.
        without_G: the statistic without each group.
        draws: the draws; None comes back where there are none, or a statistic is missing.
    """
    if not len(draws.counts_BG) or not np.isfinite(without_G).all():
        return None
    groups = draws.groups
    influence_G = (groups - 1) * (without_G.mean() - without_G)
    return np.asarray(value + (draws.counts_BG - 1.0) @ influence_G / groups)


def missing(reason: str, n: int | None = None) -> Estimate:
    """An estimate without a value, with the reason."""
    return Estimate(None, n=n, reason=reason)


def interval(
    draws_B: np.ndarray | None, value: float | None, level: float = LEVEL
) -> tuple[float | None, float | None]:
    """Percentile interval of bootstrap draws; (None, None) where there are too few.

    Args:
        draws_B: shape (B,), NaN where a draw has no value.
        value: the estimate; the interval is widened to hold it where bias left it outside.
        level: coverage.
    """
    if draws_B is None or value is None or not len(draws_B):
        return None, None
    finite = draws_B[np.isfinite(draws_B)]
    if len(finite) < USABLE * len(draws_B):
        return None, None
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return min(float(low), value), max(float(high), value)


def mean_of(estimates: list[Estimate]) -> Estimate:
    """Mean over routers, draw by draw."""
    return _combine(estimates, lambda values: values.mean(axis=0))


def sum_of(estimates: list[Estimate]) -> Estimate:
    """Sum over routers, draw by draw."""
    return _combine(estimates, lambda values: values.sum(axis=0))


def geometric_mean_of(estimates: list[Estimate]) -> Estimate:
    """Geometric mean over routers, draw by draw."""

    def geometric(values: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.exp(np.log(values).mean(axis=0)))

    return _combine(estimates, geometric)


def worst_of(estimates: list[Estimate], routers: list[str], *, largest: bool = True) -> Estimate:
    """The extreme over routers, bootstrapped as such, with the router that it comes from."""
    extreme = np.max if largest else np.min
    combined = _combine(estimates, lambda values: np.asarray(extreme(values, axis=0)))
    if combined.value is None:
        return combined
    found = next(r for e, r in zip(estimates, routers, strict=True) if e.value == combined.value)
    return replace(combined, router=found)


def difference(now: Estimate, base: Estimate) -> Estimate:
    """Now − base, paired by the draws; both must come from the same groups."""
    return _pair(now, base, lambda a, b: a - b)


def ratio(now: Estimate, base: Estimate) -> Estimate:
    """Now / base, paired by the draws; NaN draws where the base is 0."""

    def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(np.where(b > 0, a / b, np.nan))

    return _pair(now, base, divide)


def _combine(estimates: list[Estimate], combine: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Combine values, draws and null draws over routers; routers without a value are named."""
    present = [e for e in estimates if e.value is not None]
    if not present:
        reasons = sorted({e.reason for e in estimates if e.reason})
        return missing("; ".join(reasons) or "no router was measured")
    value = float(combine(np.array([e.value for e in present])))
    left_out = len(estimates) - len(present)
    sizes = [e.n for e in present if e.n is not None]
    return Estimate(
        value if np.isfinite(value) else None,
        _stack([e.draws_B for e in present], combine),
        min(sizes) if sizes else None,
        _stack([e.null_B for e in present], combine),
        f"{left_out} of {len(estimates)} routers have no value" if left_out else None,
    )


def _stack(
    draws: list[np.ndarray | None], combine: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    known = [d for d in draws if d is not None]
    return combine(np.stack(known)) if len(known) == len(draws) else None


def _pair(
    now: Estimate, base: Estimate, combine: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Estimate:
    if now.value is None or base.value is None:
        return missing(now.reason or base.reason or "not measured on both sides", now.n)
    value = float(combine(np.array(now.value), np.array(base.value)))
    if not np.isfinite(value):
        return missing("the base is zero", now.n)
    draws_B = None
    if (
        now.draws_B is not None
        and base.draws_B is not None
        and now.draws_B.shape == base.draws_B.shape
    ):
        draws_B = combine(now.draws_B, base.draws_B)
    return Estimate(value, draws_B, now.n)


def _finite_mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else None
