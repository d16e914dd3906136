"""Whether a selection bias is stored finely enough, from the files alone.

The router's input is not in the files; what a norm makes of Gaussian noise stands for it.

Legend: T tokens, E experts, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moegeo_cli.geometry.rounding import changed_choices, coarseness
from moegeo_cli.geometry.selection import SelectionRule

TOKENS = 512


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
    """What rounding changed in a selection bias. None if it is stored finely or is constant.

    A float32 tensor whose values all fit bfloat16 was bfloat16 before.

    Args:
        bias_E: the bias.
        dtype: as stored.
        rule: how experts are chosen, with this bias; None where that is not known.
        weight_ED: the router's weight, None where it is not known.
        logit_bias_E: the bias of the logits, None without one.
        norm_D: weights of the norm before the router; None for ones.
    """
    coarse = coarseness(bias_E, dtype)
    if coarse is None:
        return None
    found = BiasRounding(coarse.precision, float(coarse.step_E.max()), coarse.distinct)
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
    changes = changed_choices(rule, scores_TE, coarse.step_E, generator)
    return BiasRounding(found.precision, found.step, found.distinct, gap, changes)
