"""Measures how many choices of experts change because a selection bias was rounded.

The files do not hold the router's input. Gaussian noise, scaled by the weights of the norm before
the router, is used instead.

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
        precision: "bfloat16" or "float16": the coarsest precision that holds all values exactly.
        step: largest distance from a value to its neighbour in that precision.
        distinct: number of different values.
        gap: median gap between the scores of the last chosen expert and the next one, over
            Gaussian inputs; None if it could not be computed.
        changes: share of Gaussian inputs that choose other experts with a random bias that rounds
            to this one; None if it could not be computed.
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
    """Measure how coarsely a selection bias is stored, and which choices that changes.

    A float32 tensor whose values all fit bfloat16 counts as bfloat16.

    Args:
        bias_E: the selection bias, shape (E,).
        dtype: its stored dtype.
        rule: how experts are chosen, with this bias; None if not known.
        weight_ED: the router's weight, shape (E, D); None if not known.
        logit_bias_E: the bias of the logits, shape (E,); None for none.
        norm_D: weights of the norm before the router, shape (D,); None for ones.

    Returns:
        None if the bias is stored in fine precision or is constant.
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
