"""The metrics of a router that need no probe, by their definitions."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from moegeo_cli.geometry.estimates import HASHED
from moegeo_cli.measuring.arrays import RouterArrays
from moegeo_cli.measuring.metrics import bias_changes, bias_spread, router_cosine
from tests.traces import EXPERTS, arrays_of


@pytest.fixture(scope="module")
def router() -> RouterArrays:
    return arrays_of(1, layers=(0,)).routers[0]


def without(router: RouterArrays, expert: int) -> RouterArrays:
    """The same with an expert that is masked and that no token reached."""
    dispatch_SE = router.sums.dispatch_SE.copy()
    dispatch_SE[:, expert] = 0
    sums = dataclasses.replace(router.sums, dispatch_SE=dispatch_SE)
    return dataclasses.replace(router, sums=sums, masked=(expert,))


def test_the_spread_of_a_bias_leaves_out_experts_that_are_off(router: RouterArrays) -> None:
    bias = np.array([0.5, -1e9, 0.25, 2.0])
    biased = dataclasses.replace(router, selection_bias_E=bias)
    assert bias_spread.estimate(without(biased, 1)).value == 1.75
    assert bias_spread.estimate(biased).value == 2.0 + 1e9
    assert bias_spread.estimate(router).reason == "the router has no selection bias"
    lost = dataclasses.replace(router, selection_bias_E=np.array([0.0, np.nan, 1.0, 1.0]))
    assert bias_spread.estimate(lost).reason == "the selection bias is not finite"
    masked = dataclasses.replace(router, selection_bias_E=np.array([0.0, -np.inf, 1.0, 3.0]))
    assert bias_spread.estimate(without(masked, 1)).value == 3.0


def test_what_rounding_changes_is_passed_on_or_has_a_reason(router: RouterArrays) -> None:
    biased = dataclasses.replace(router, selection_bias_E=np.zeros(EXPERTS))
    assert bias_changes.estimate(dataclasses.replace(biased, bias_changes=0.25)).value == 0.25
    assert "the same for all experts" in str(bias_changes.estimate(biased).reason)
    assert bias_changes.estimate(router).reason == "the router has no selection bias"


def test_the_cosine_is_the_mean_over_pairs_of_rows(router: RouterArrays) -> None:
    def mean(rows: np.ndarray) -> float:
        return float(np.mean([
            abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
            for a, b in itertools.combinations(rows.astype(float), 2)
        ]))  # fmt: skip

    weight = router.weight_ED
    assert router_cosine.estimate(router).value == pytest.approx(mean(weight))
    rest = np.delete(weight, 2, axis=0)
    assert router_cosine.estimate(without(router, 2)).value == pytest.approx(mean(rest))
    hashed = dataclasses.replace(router, sums=dataclasses.replace(router.sums, hashed=True))
    assert router_cosine.estimate(hashed).reason == HASHED
    for changed, reason in (
        (np.where(np.arange(EXPERTS)[:, None] == 1, 0.0, weight), "a row of the router is zero"),
        (weight[:1], "the router has only one row"),
        (np.full_like(weight, np.nan), "the router's weights are not finite"),
    ):
        assert router_cosine.mean_absolute_cosine(changed).reason == reason
