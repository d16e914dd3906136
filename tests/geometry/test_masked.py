"""A router whose masked experts are left out is measured as one that never had them."""

from __future__ import annotations

import numpy as np
import pytest

from moegeo_cli.geometry.estimates import routing_estimates
from moegeo_cli.geometry.masked import find_masked
from moegeo_cli.geometry.resample import make_draws
from moegeo_cli.geometry.routing import measure_routing
from moegeo_cli.geometry.sums import RouterTokens

LENGTHS = (37, 5, 61, 20)
OPEN = np.array([0, 1, 2, 4, 6, 7])
MASKED = (3, 5)


def choose(scores_TE: np.ndarray, top_k: int) -> np.ndarray:
    return np.argsort(-scores_TE, axis=1, kind="stable")[:, :top_k]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("by", ["row", "bias", "selection bias"])
def test_numbers_are_those_of_the_other_experts(scoring: str, by: str) -> None:
    rng = np.random.default_rng(3)
    sequence_T = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    few_TE = rng.normal(size=(len(sequence_T), len(OPEN))).astype(np.float32)
    bias_E = rng.normal(0.0, 0.1, len(OPEN)) if by == "selection bias" else None
    scores_TE = 1 / (1 + np.exp(-few_TE.astype(float)))
    if scoring == "softmax":
        scores_TE = np.exp(few_TE) / np.exp(few_TE).sum(1, keepdims=True)
    chosen_TK = choose(scores_TE + (0 if bias_E is None else bias_E), 2)
    weights_TK = np.take_along_axis(scores_TE, chosen_TK, 1)
    few = RouterTokens(few_TE, chosen_TK, weights_TK, sequence_T, scoring, bias_E, top_k=2)
    all_TE = np.full((len(few_TE), 8), -np.inf if by == "bias" else -1e9, dtype=np.float32)
    if by == "selection bias":
        all_TE = rng.normal(size=all_TE.shape).astype(np.float32)
    all_TE[:, OPEN] = few_TE
    whole_E = None
    if bias_E is not None:
        whole_E = np.full(8, -np.inf)
        whole_E[OPEN] = bias_E
    whole = RouterTokens(
        all_TE, OPEN[chosen_TK], weights_TK, sequence_T, scoring, whole_E, top_k=2, masked=MASKED
    )
    draws = make_draws(np.arange(len(LENGTHS)), 0)
    expected = routing_estimates(measure_routing(few), draws)
    sums = measure_routing(whole)
    assert sums.experts == 8
    assert sums.nonfinite_tokens == 0
    assert sums.contradicted == 0
    assert not sums.dispatch_SE[:, MASKED].any()
    found = routing_estimates(sums.without(MASKED), draws)
    for name, estimate in expected.items():
        if estimate.value is None:
            assert found[name].reason == estimate.reason
        else:
            assert found[name].value == pytest.approx(estimate.value, rel=1e-12), name


def test_masks_are_told_from_weights() -> None:
    rng = np.random.default_rng(0)
    weight_ED = rng.normal(0.0, 0.02, (8, 16))
    bias_E = rng.normal(0.0, 0.1, 8)
    assert find_masked(weight_ED, bias_E, None) == ()
    assert find_masked(weight_ED, None, np.where(np.arange(8) == 5, -np.inf, bias_E)) == (5,)
    assert find_masked(weight_ED, np.where(np.arange(8) == 2, -1e4, bias_E), None) == (2,)
    weight_ED[3] = -1e9
    assert find_masked(weight_ED, bias_E, None) == (3,)
    weight_ED[3] = np.nan
    assert find_masked(weight_ED, bias_E, None) == ()
    assert find_masked(np.zeros((4, 4)), None, None) == ()
    # A bias that all experts share, however low, switches none off.
    assert find_masked(None, np.full(8, -500.0), None) == ()
