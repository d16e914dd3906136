"""Estimates with intervals: a bootstrap over groups of sequences, with the same draws everywhere.

A statistic of a draw is computed from sums by group, each weighted by the number of times that the
group was drawn. All routers, checkpoints and runs of one probe share the draws. Differences, ratios
and means over routers are therefore formed draw by draw, which accounts for their correlation.

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
    """Assign sequences at random to at most 32 groups of nearly equal size.

    Up to 32 sequences have a group each; more sequences give 17 to 32 groups.

    Args:
        count: S.
        seed: seed of the shuffle.

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
    """Seeded bootstrap draws of groups of sequences.

    `groups_S` is each sequence's group; `counts_BG` is the number of times that each draw took each
    group. With fewer than two groups there are no draws (B = 0), and estimates have no interval.
    """

    groups_S: np.ndarray
    counts_BG: np.ndarray
    seed: int = 0

    @property
    def groups(self) -> int:
        """Number of groups, G."""
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
        """The quadratic form cᵀ M c of each draw's counts c: (A, G, G) becomes (B, A)."""
        rows, columns = np.triu_indices(self.groups)
        packed_AP = gram_AGG[:, rows, columns] * np.where(rows == columns, 1.0, 2.0)
        return np.asarray(self._products_BP @ packed_AP.T)

    @functools.cached_property
    def _products_BP(self) -> np.ndarray:
        rows, columns = np.triu_indices(self.groups)
        return np.asarray(self.counts_BG[:, rows] * self.counts_BG[:, columns])

    def maxima(self, maxima_S: np.ndarray) -> np.ndarray:
        """The maximum over each draw's groups: (S,) becomes (B,)."""
        maxima_G = np.full(self.groups, -np.inf)
        np.maximum.at(maxima_G, self.groups_S, maxima_S)
        return np.asarray(np.where(self.counts_BG > 0, maxima_G, -np.inf).max(axis=1))

    def predict_noise(self, residuals_NL: np.ndarray) -> np.ndarray:
        """Draw how far one more row like the N given ones would be from their mean.

        The distribution is multivariate t with the covariance of the rows times 1 + 1/N, so columns
        keep their correlation. The same N and seed give the same draws for any columns.

        Args:
            residuals_NL: N ≥ 2 rows, each minus the mean row.

        Returns:
            Shape (B, L).
        """
        count = len(residuals_NL)
        generator = np.random.Generator(np.random.PCG64([self.seed, count]))
        normal_BN = generator.standard_normal((len(self.counts_BG), count))
        chi_B = generator.chisquare(count - 1, len(self.counts_BG)) / (count - 1)
        scale = np.sqrt((1.0 + 1.0 / count) / (count - 1) / chi_B)
        return np.asarray((normal_BN @ residuals_NL) * scale[:, None])


def make_draws(groups_S: np.ndarray, seed: int = 0, count: int = DRAWS) -> Draws:
    """Draw G of the G groups with replacement, B times.

    Args:
        groups_S: each sequence's group, from `group_sequences`.
        seed: seed of the draws.
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
    """A value with its bootstrap draws.

    Intervals of the value, and of values computed from it, come from `draws_B`; None means no
    interval. `null_B` are draws under the null of the metric, for example balanced routing.
    `reason` says why `value` is None, or what is left out of it. `router` is the router that a
    maximum or minimum over routers comes from.
    """

    value: float | None
    draws_B: np.ndarray | None = None
    n: int | None = None
    null_B: np.ndarray | None = None
    reason: str | None = None
    router: str | None = None
    unit: str | None = None  # where it depends on the router

    def metric(self, name: str) -> Metric:
        """The estimate as a record, with the unit and direction of the metric `name`."""
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
    """Approximate bootstrap draws of a smooth statistic that is expensive to compute.

    A draw is linear in the numbers of times that the groups were drawn. The influence of a group is
    measured by leaving it out (the infinitesimal jackknife).

    Args:
        value: the statistic of all groups.
        without_G: the statistic without each group.
        draws: the bootstrap draws.

    Returns:
        Shape (B,); None if there are no draws, or if a value of `without_G` is not finite.
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
    """Percentile interval of bootstrap draws.

    Args:
        draws_B: shape (B,), NaN for a draw without a value.
        value: the estimate; if it is outside, the interval is widened to include it.
        level: coverage.

    Returns:
        The lower and upper end; (None, None) if too few draws have a value.
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
    return _combine(estimates, lambda values: np.exp(np.log(values).mean(axis=0)))


def worst_of(estimates: list[Estimate], routers: list[str], *, largest: bool = True) -> Estimate:
    """The maximum (or minimum) over routers, draw by draw, with the router that it comes from."""
    extreme = np.max if largest else np.min
    combined = _combine(estimates, lambda values: np.asarray(extreme(values, axis=0)))
    if combined.value is None:
        return combined
    found = next(r for e, r in zip(estimates, routers, strict=True) if e.value == combined.value)
    return replace(combined, router=found)


def difference(now: Estimate, base: Estimate) -> Estimate:
    """Now − base, draw by draw; both must come from the same groups."""
    return _pair(now, base, lambda a, b: a - b)


def ratio(now: Estimate, base: Estimate) -> Estimate:
    """Now / base, draw by draw; a draw with base 0 is NaN."""
    return _pair(now, base, lambda a, b: np.where(b > 0, a / b, np.nan))


@np.errstate(divide="ignore", invalid="ignore")
def _combine(estimates: list[Estimate], combine: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Combine values, draws and null draws over routers; the reason counts those without value."""
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


@np.errstate(divide="ignore", invalid="ignore")
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
