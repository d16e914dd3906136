"""Whether a selection bias is stored with enough precision for the choices that it decides.

The bias is added to the scores, and the K experts with the largest sums are chosen. A bias that was
rounded on saving changes the choice of tokens whose margin is smaller than the rounding error.

Legend: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moegeo_cli.geometry.selection import SelectionRule

DRAWS = 4
# Bits of the significand, including the hidden bit.
_BITS = {"BF16": 8, "F16": 11}
_NAMES = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True, slots=True)
class Coarseness:
    """How coarsely a bias is stored.

    Attributes:
        precision: "bfloat16" or "float16": the coarsest precision that represents all values.
        step_E: spacing of that precision at each value; 0 for a value of zero.
        distinct: number of different values.
    """

    precision: str
    step_E: np.ndarray
    distinct: int


def coarseness(bias_E: np.ndarray, dtype: str = "F32") -> Coarseness | None:
    """How coarsely a bias is stored.

    A float32 bias whose values are all representable in bfloat16 was bfloat16 before.

    Args:
        bias_E: the bias, float32.
        dtype: the stored type: BF16, F16 or F32.

    Returns:
        None if the bias needs float32 or is constant.
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
    """Share of tokens whose choice may have changed when the bias was rounded.

    Args:
        rule: how experts are chosen.
        scores_TE: the scores that the rule compares, including the bias.
        step_E: the spacing of stored values, from `coarseness`.
        generator: draws the rounding error, uniform over each step, `DRAWS` times.

    Returns:
        The mean share over the draws.
    """
    chosen_TE = rule.select(scores_TE)
    changed = 0.0
    for _ in range(DRAWS):
        jitter_E = (generator.random(step_E.size) - 0.5) * step_E
        changed += float((rule.select(scores_TE + jitter_E) != chosen_TE).any(axis=1).mean())
    return changed / DRAWS


def _precision(values: np.ndarray, dtype: str) -> str | None:
    """The coarsest type that represents all values; None if only float32 does."""
    if dtype in _BITS:
        return dtype
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    return "F16" if np.array_equal(half, values.astype(np.float32)) else None
