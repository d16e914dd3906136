"""How coarsely a selection bias is stored, and how many choices that changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from moegeo_cli.commands.check.boundary import bias_rounding
from moegeo_cli.geometry.selection import SelectionRule

EXPERTS, WIDTH, TOP_K = 8, 16, 2
WEIGHT = np.random.default_rng(0).normal(0, 0.3, (EXPERTS, WIDTH)).astype(np.float32)
# Between 1 and 2 bfloat16 has steps of 1/128.
COARSE = (1.0 + np.arange(EXPERTS) / 128).astype(np.float32)
RULE = SelectionRule(TOP_K, "sigmoid", COARSE)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x.astype(float))))


def test_a_float32_bias_that_was_bfloat16_is_found_out() -> None:
    found = bias_rounding(COARSE, "F32", None, None, None, None)
    assert found is not None
    assert (found.precision, found.step, found.distinct) == ("bfloat16", 1 / 128, EXPERTS)
    assert (found.gap, found.changes) == (None, None), "no rule, no choices"
    half = bias_rounding((1.0 + np.arange(EXPERTS) / 1024).astype(np.float32), "F32", None, None,
                         None, None)  # fmt: skip
    assert half is not None
    assert (half.precision, half.step) == ("float16", 2.0**-10)


def test_a_fine_or_a_constant_bias_has_nothing_to_say() -> None:
    fine = (1.0 + np.arange(EXPERTS) / 1e5).astype(np.float32)
    assert bias_rounding(fine, "F32", RULE, WEIGHT, None, None) is None
    constant = np.full(EXPERTS, 0.5, np.float32)
    assert bias_rounding(constant, "BF16", RULE, WEIGHT, None, None) is None


@pytest.mark.parametrize("scale", [None, 0.0, 3.0])
def test_the_gap_is_between_the_last_chosen_and_the_first_other(scale: float | None) -> None:
    norm = None if scale is None else np.full(WIDTH, scale, np.float32)
    found = bias_rounding(COARSE, "BF16", RULE, WEIGHT, None, norm)
    assert found is not None
    inputs = np.random.default_rng(0).standard_normal((512, WIDTH)).astype(np.float32)
    inputs = inputs * (1.0 if scale is None else scale)
    gaps = []
    for row in inputs:
        ranked = sorted(sigmoid(WEIGHT @ row) + COARSE, reverse=True)
        gaps.append(ranked[TOP_K - 1] - ranked[TOP_K])
    assert found.gap == pytest.approx(np.median(gaps), rel=1e-4)
    assert found.changes is not None
    if scale == 0.0:
        assert found.changes == 0.0, "half a step on either side does not reach the neighbour"
    else:
        assert 0.0 < found.changes < 0.1


def test_a_bias_of_the_logits_shifts_them() -> None:
    loud = np.zeros(EXPERTS, np.float32)
    loud[[2, 5]] = 50.0
    still = np.zeros(WIDTH, np.float32)  # inputs that decide nothing
    found = bias_rounding(COARSE, "BF16", RULE, WEIGHT, loud, still)
    assert found is not None
    assert found.gap == pytest.approx((1.0 + COARSE[2]) - (0.5 + COARSE[7])), "1 against 1/2"
    assert found.changes == 0.0


def test_what_is_not_finite_or_of_another_size_is_not_computed() -> None:
    bad = WEIGHT.copy()
    bad[0, 0] = np.nan
    for weight in (bad, WEIGHT[:4], None):
        found = bias_rounding(COARSE, "BF16", RULE, weight, None, None)
        assert found is not None
        assert (found.gap, found.changes) == (None, None)
    odd = bias_rounding(COARSE, "BF16", RULE, WEIGHT, None, np.ones(3, np.float32))
    plain = bias_rounding(COARSE, "BF16", RULE, WEIGHT, None, None)
    assert odd == plain, "a norm of another width is not of this router"


def test_a_bias_on_logits_is_compared_with_logits() -> None:
    rule = dataclasses.replace(RULE, bias_on="logits")
    found = bias_rounding(COARSE, "BF16", rule, WEIGHT, None, None)
    assert found is not None
    inputs = np.random.default_rng(0).standard_normal((512, WIDTH)).astype(np.float32)
    ranked = np.sort(inputs @ WEIGHT.T + COARSE, axis=1)[:, ::-1]
    assert found.gap == pytest.approx(np.median(ranked[:, 1] - ranked[:, 2]), rel=1e-4)
