"""Compare a router's load with the loads of deployed models, which are known to be good.

`python -m benchmarks.field regenerate` writes known_loads.toml from published counts;
docs/results/verdicts.md gives their sources.

Legend: E experts, K chosen per token.
"""

from __future__ import annotations

import functools
import math
import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from moegeo_cli.records.verdict import Severity
from moegeo_cli.verdict.thresholds import FOLDER

MIXTURE, NARROW = "mixture", "narrow"
BROAD_DOMAINS = 4  # a probe with this many domains is a mixture
# A mixture with a `reach` under this is routed to the same K experts.
CONSTANT = 0.02
# A sample can be judged only if even routing would reach this share of the way from K to E on it.
LEAST_EVEN = 0.5


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The loads of a deployed model on one kind of text: quantiles of `reach` over its layers.

    `breadth` is the kind of text, `MIXTURE` or `NARROW`; `quantiles` are in ascending order.
    """

    model: str
    breadth: str
    experts: int
    top_k: int
    texts: int
    layers: int
    quantiles: tuple[float, ...]

    def more_even(self, reach: float) -> float:
        """Share of its layers with a larger `reach`, that is, a more even load (interpolated)."""
        place = bisect_left(self.quantiles, reach)
        last = len(self.quantiles) - 1
        if place == 0:
            return 1.0
        if place > last:
            return 0.0
        low, high = self.quantiles[place - 1], self.quantiles[place]
        part = (reach - low) / (high - low) if high > low else 1.0
        return 1.0 - (place - 1 + part) / last


@dataclass(frozen=True, slots=True)
class Standing:
    """The rank of a load among known-good models on the same kind of text."""

    more_even: float  # mean over models of the share of layers with a more even load
    models: int  # number of models


@dataclass(frozen=True, slots=True)
class LoadReading:
    """How unequal one router's load is, and the severity of that.

    `reach` is the place of the effective experts between K (0) and the value of even routing on the
    same sample (1). `severity` is None if the load cannot be judged; `reason` says why.
    """

    reach: float | None
    severity: Severity | None
    standing: Standing | None
    reason: str


def effective_experts(counts_E: Sequence[float]) -> float:
    """Exponential of the entropy of the load: between K and E for top-K routing, E at balance."""
    total = sum(counts_E)
    return math.exp(-sum(c / total * math.log(c / total) for c in counts_E if c > 0))


def even_experts(experts: int, slots: float, design_effect: float) -> float:
    """Effective experts of even routing on a sample of this size; less than E by sampling noise.

    The mean divergence of a sampled load from even routing is (E - 1) · effect / (2 · slots).

    Args:
        experts: E.
        slots: number of (token, slot) pairs in the sample.
        design_effect: variance of the counts over that of independent tokens.
    """
    return experts * math.exp(-(experts - 1) * design_effect / (2.0 * slots))


def reach_of(effective: float, even: float, experts: int, top_k: int) -> float | None:
    """The place of a load between K experts (0) and even routing on the same sample (1).

    Args:
        effective: effective experts of the load.
        even: effective experts of even routing on this sample.
        experts: E.
        top_k: K.

    Returns:
        None if every token uses every expert, or if the sample is so small that even routing would
        reach less than half of the way from K to E.
    """
    if top_k >= experts or even - top_k < LEAST_EVEN * (experts - top_k):
        return None
    return (effective - top_k) / (even - top_k)


def read_load(
    effective: float,
    even: float,
    experts: int,
    top_k: int,
    breadth: str,
    *,
    upper: float | None = None,
) -> LoadReading:
    """Judge one router's load by comparison with known-good models.

    Args:
        effective: effective experts of the load.
        even: effective experts of even routing on this sample (the null).
        experts: E.
        top_k: K.
        breadth: "mixture" of several domains, or "narrow".
        upper: upper end of the interval of `effective`; None for the value itself.

    Returns:
        Severity failing if a mixture is routed to the same K experts; watch if the upper end is
        under two thirds of the lowest `reach` of known-good models; else info.
    """
    reach = reach_of(effective, even, experts, top_k)
    if reach is None:
        words = (
            "every token uses every expert"
            if top_k >= experts
            else "too few tokens: balanced routing would look unequal as well"
        )
        return LoadReading(None, None, None, words)
    surely = reach_of(effective if upper is None else upper, even, experts, top_k)
    assert surely is not None
    where = standing(reach, breadth)
    if breadth == MIXTURE and surely < CONSTANT:
        words = f"the same {top_k} of {experts} experts take nearly every token"
        return LoadReading(reach, "failing", where, words)
    if surely < limit_of(breadth):
        return LoadReading(reach, "watch", where, "outside what known-good models show")
    return LoadReading(reach, "info", where, "within what known-good models show")


def limit_of(breadth: str) -> float:
    """The `reach` under which a load is a watch, on this kind of text."""
    return float(_data()["limit"][breadth])


def standing(reach: float, breadth: str) -> Standing:
    """The rank of a load among known-good models."""
    models = [m for m in known_models() if m.breadth == breadth]
    shares = [m.more_even(reach) for m in models]
    return Standing(sum(shares) / len(shares), len(models))


def standing_words(where: Standing, breadth: str) -> str:
    """The rank of a load in words, for a message."""
    share = "every" if where.more_even > 0.995 else f"{where.more_even:.0%} of the"
    layers = "layer" if share == "every" else "layers"
    kind = "mixed text" if breadth == MIXTURE else "text of one kind"
    return f"more unequal than {share} {layers} of {where.models} deployed models on {kind}"


@functools.cache
def known_models() -> tuple[KnownModel, ...]:
    """Every model of known_loads.toml, with one entry per kind of text."""
    return tuple(
        KnownModel(**{**row, "quantiles": tuple(row["quantiles"])}) for row in _data()["model"]
    )


def forget() -> None:
    """Clear the cache, so that known_loads.toml is read again after it was rewritten."""
    _data.cache_clear()
    known_models.cache_clear()


@functools.cache
def _data() -> dict:  # type: ignore[type-arg]
    return tomllib.loads((FOLDER / "known_loads.toml").read_text(encoding="utf-8"))
