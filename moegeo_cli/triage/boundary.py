"""Whether a selection bias is stored finely enough, from the files alone.

The bias is added to scores, and the K largest sums are chosen. A bias that was rounded on saving
chooses otherwise for tokens whose gap at the boundary is smaller than what rounding took. The
router's input is not in the files; what a norm makes of Gaussian noise stands for it.

Legend: T tokens, E experts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moegeo_cli.geometry.selection import SelectionRule

TOKENS, DRAWS = 512, 4
# Bits of the significand, the hidden one included.
_BITS = {"BF16": 8, "F16": 11}


@dataclass(frozen=True, slots=True)
class BiasRounding:
    """How coarsely a selection bias is stored.

    Attributes:
        precision: "bfloat16" or "float16": the coarsest that all values fit.
        step: largest distance between two neighbouring values of that precision, at these values.
        distinct: number of different values.
        gap: median gap between the last chosen and the first other score, over Gaussian inputs;
            None where it could not be computed.
        changes: share of Gaussian inputs for which some bias that rounds to this one chooses
            otherwise; None likewise.
    """

    precision: str
    step: float
    distinct: int
    gap: float | None = None
    changes: float | None = None


def bias_rounding(
    bias_E: np.ndarray[Any, Any],
    dtype: str,
    rule: SelectionRule | None,
    weight_ED: np.ndarray[Any, Any] | None,
    logit_bias_E: np.ndarray[Any, Any] | None,
    norm_D: np.ndarray[Any, Any] | None,
) -> BiasRounding | None:
    """How much rounding took from a selection bias; None where it is stored finely or is constant.

    A float32 tensor whose values all fit bfloat16 was bfloat16 before.

    Args:
        bias_E: the bias.
        dtype: as stored.
        rule: how experts are chosen, with this bias; None where that is not known.
        weight_ED: the router's weight, None where it is not known.
        logit_bias_E: the bias of the logits, None without one.
        norm_D: weights of the norm before the router; None for ones.
    """
    finite = bias_E[np.isfinite(bias_E)]
    if finite.size < 2 or finite.min() == finite.max():
        return None
    precision = _precision(finite, dtype)
    if precision is None:
        return None
    bits = _BITS[precision]
    step_E = np.zeros(bias_E.shape)
    known = np.isfinite(bias_E) & (bias_E != 0)
    step_E[known] = np.exp2(np.floor(np.log2(np.abs(bias_E[known]))) + 1 - bits)
    name = {"BF16": "bfloat16", "F16": "float16"}[precision]
    found = BiasRounding(name, float(step_E.max()), len(np.unique(finite)))
    if rule is None or weight_ED is None or weight_ED.shape[0] != bias_E.size:
        return found
    if not np.isfinite(weight_ED).all():
        return found
    generator = np.random.default_rng(0)
    inputs_TD = generator.standard_normal((TOKENS, weight_ED.shape[1])).astype(np.float32)
    if norm_D is not None and norm_D.size == weight_ED.shape[1]:
        inputs_TD *= norm_D
    logits_TE = inputs_TD @ weight_ED.T
    if logit_bias_E is not None:
        logits_TE = logits_TE + logit_bias_E
    scores_TE = rule.score(logits_TE) if rule.bias_on == "scores" else logits_TE + bias_E
    ranked_TE = np.sort(scores_TE, axis=1)
    boundary = bias_E.size - rule.top_k
    gap = float(np.median(ranked_TE[:, boundary] - ranked_TE[:, boundary - 1]))
    chosen_TE = rule.select(scores_TE)
    changed = 0.0
    for _ in range(DRAWS):
        jitter_E = (generator.random(bias_E.size) - 0.5) * step_E
        changed += float((rule.select(scores_TE + jitter_E) != chosen_TE).any(axis=1).mean())
    return BiasRounding(name, found.step, found.distinct, gap, changed / DRAWS)


def _precision(values: np.ndarray[Any, Any], dtype: str) -> str | None:
    """The coarsest float that holds all values; None where only float32 does."""
    if dtype in _BITS:
        return dtype
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    if not (bits & 0xFFFF).any():
        return "BF16"
    with np.errstate(over="ignore"):
        half = values.astype(np.float16).astype(np.float32)
    return "F16" if np.array_equal(half, values.astype(np.float32)) else None
