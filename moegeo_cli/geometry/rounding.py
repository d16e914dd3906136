"""Whether a selection bias is stored finely enough for the choices that it decides.

The bias is added to scores, and the K largest sums are chosen. A bias that was rounded on saving
chooses otherwise for tokens whose gap at the boundary is smaller than what rounding took.

Legend: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.selection import SelectionRule

DRAWS = 4
# Bits of the significand, the hidden one included.
_BITS = {"BF16": 8, "F16": 11}
_NAMES = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class Coarseness:
    """How coarsely a bias is stored.

    Attributes:
        precision: "bfloat16" or "float16": the coarsest that all values fit.
        step_E: distance of two neighbouring values of that precision at each entry; 0 at zero.
        distinct: number of different values.
    """

    precision: str
    step_E: np.ndarray
    distinct: int


def coarseness(bias_E: np.ndarray, dtype: str = "F32") -> Coarseness | None:
    """How coarsely a bias is stored; None where it is stored finely or is constant.

    A float32 bias whose values all fit bfloat16 was bfloat16 before.

    Args:
        bias_E: the bias, float32.
        dtype: as stored: BF16, F16 or F32.
    """
    finite = bias_E[np.isfinite(bias_E)]
    if finite.size < 2 or finite.min() == finite.max():
        return None
    precision = _precision(finite, dtype)
    if precision is None:
        return None
    step_E = np.zeros(bias_E.shape)
    known = np.isfinite(bias_E) & (bias_E != 0)
    exponent = np.floor(np.log2(np.abs(bias_E[known])))
    step_E[known] = np.exp2(exponent + 1 - _BITS[precision])
    return Coarseness(_NAMES[precision], step_E, len(np.unique(finite)))


def changed_choices(
    rule: SelectionRule,
    scores_TE: np.ndarray,
    step_E: np.ndarray,
    generator: np.random.Generator,
) -> float:
    """Share of tokens for which some bias that rounds to this one chooses otherwise.

    Args:
        rule: how experts are chosen.
        scores_TE: what the rule compares, the bias included.
        step_E: as `coarseness` gives it.
        generator: draws what rounding took, uniform over each step, `DRAWS` times.
    """
    chosen_TE = rule.select(scores_TE)
    changed = 0.0
    for _ in range(DRAWS):
        jitter_E = (generator.random(step_E.size) - 0.5) * step_E
        changed += float((rule.select(scores_TE + jitter_E) != chosen_TE).any(axis=1).mean())
    return changed / DRAWS


def _precision(values: np.ndarray, dtype: str) -> str | None:
    """The coarsest float that holds all values; None where only float32 does."""
    if dtype in _BITS:
        return dtype
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    return "F16" if np.array_equal(half, values.astype(np.float32)) else None
