"""Loads of deployed models, with which a router's load is compared.

known_loads.toml is written by `python -m benchmarks.field regenerate` from the counts that lie
beside it; docs/results/verdicts.md says where each comes from.

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
BROAD_DOMAINS = 4  # so many domains make a probe a mixture
# Experts beside the K busiest that carry this share of what they would at balance, or less.
CONSTANT = 0.02
# The part of E that even routing must still show on a sample, before it can tell anything.
TELLING = 0.5


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A deployed model's layers on one kind of text, as quantiles of `reach`, lowest first."""

    model: str
    breadth: str
    experts: int
    top_k: int
    texts: int
    layers: int
    quantiles: tuple[float, ...]

    def more_even(self, reach: float) -> float:
        """Share of its layers with a load more even than this, interpolated."""
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
    """Where a load stands among known-good models on that kind of text."""

    more_even: float  # mean over models of the share of their layers that are more even
    models: int


@dataclass(frozen=True, slots=True)
class LoadReading:
    """How unequal one router's load is, and the severity that follows.

    `reach` is how far the effective experts stand between K (0) and what even routing shows on the
    same sample (1). `severity` is None where the sample cannot tell.
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
    """Effective experts that even routing shows on so many (token, slot) pairs.

    The mean divergence of a sampled load from even routing is (E - 1) · effect / 2 · slots.

    Args:
        experts: E.
        slots: (token, slot) pairs behind the load.
        design_effect: how much more counts vary than those of independent tokens.
    """
    return experts * math.exp(-(experts - 1) * design_effect / (2.0 * slots))


def reach_of(effective: float, even: float, experts: int, top_k: int) -> float | None:
    """How far a load stands from K experts (0) towards even routing (1) on the same sample.

    Args:
        effective: effective experts of the load.
        even: what even routing shows on this sample.
        experts: E.
        top_k: K.

    Returns:
        None where every token uses every expert, or the sample is so small that even routing
        would lose over half of the way from K to E.
    """
    if top_k >= experts or even - top_k < TELLING * (experts - top_k):
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
        even: what even routing shows on this sample (its null).
        experts: E.
        top_k: K.
        breadth: "mixture" of several domains, or "narrow".
        upper: upper end of the interval of `effective`; None for the value itself.

    Returns:
        failing where a mixture is given to the same K experts; watch where the load is more
        unequal than two thirds of the lowest that known-good models show; else info.
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
    """The lowest `reach` that is not a watch on this kind of text."""
    return float(_data()["limit"][breadth])


def standing(reach: float, breadth: str) -> Standing:
    """Where a load stands among known-good models."""
    models = [m for m in known_models() if m.breadth == breadth]
    shares = [m.more_even(reach) for m in models]
    return Standing(sum(shares) / len(shares), len(models))


def standing_words(where: Standing, breadth: str) -> str:
    """Where a load stands, in words."""
    share = "every" if where.more_even > 0.995 else f"{where.more_even:.0%} of the"
    layers = "layer" if share == "every" else "layers"
    kind = "mixed text" if breadth == MIXTURE else "text of one kind"
    return f"more unequal than {share} {layers} of {where.models} deployed models on {kind}"


@functools.cache
def known_models() -> tuple[KnownModel, ...]:
    """Every model of known_loads.toml, once a kind of text."""
    return tuple(
        KnownModel(**{**row, "quantiles": tuple(row["quantiles"])}) for row in _data()["model"]
    )


def forget() -> None:
    """Read the file again at the next use, because it was written."""
    _data.cache_clear()
    known_models.cache_clear()


@functools.cache
def _data() -> dict:  # type: ignore[type-arg]
    return tomllib.loads((FOLDER / "known_loads.toml").read_text(encoding="utf-8"))
