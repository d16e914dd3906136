"""The numbers of check's table by their definitions, and a true reason for each null."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from moegeo_cli.commands.check.sharing import share
from moegeo_cli.commands.check.table import describe_checkpoint, describe_layer
from moegeo_cli.records import Metric
from tests.commands.check.recorded import (
    EXPERTS,
    WIDTH,
    experts_of,
    layer_of,
    past_of,
    sums_of,
    with_experts,
)


def metrics_of(*layers: object, quick: bool = False) -> dict[str, Metric]:
    """The last of these layers' metrics, each in a checkpoint of its own."""
    past = past_of(*(sums_of(x, quick=quick) for x in layers))
    return dict(describe_layer(layers[-1], past).metrics)


def test_rows_and_biases_by_their_definitions() -> None:
    before = layer_of(selection_bias=(0.0, 1.0, None, 0.5), bias_digest="x")
    now = layer_of(selection_bias=(0.25, 0.5, 3.0, None), bias_digest="y")
    found = metrics_of(before, now)
    norms = np.array([1.0, 2.0, 3.0, 4.0])
    assert found["row_norm"].value == pytest.approx(norms.mean())
    assert found["row_norm_spread"].value == pytest.approx(norms.std() / norms.mean())
    assert (found["stable_rank"].value, found["router_cosine"].value) == (2.5, 0.2)
    assert found["bias_spread"].value == 2.75
    assert found["bias_drift"].value == pytest.approx((0.25 + 0.5) / 2), "of what both have"
    assert found["bias_drift"].n == 2


def test_nulls_of_random_rows() -> None:
    found = metrics_of(layer_of())
    generator = np.random.default_rng(0)
    ranks, cosines = [], []
    for _ in range(4000):
        rows = generator.normal(size=(EXPERTS, WIDTH))
        values = np.linalg.svd(rows, compute_uv=False)
        ranks.append((values**2).sum() / values[0] ** 2)
        a, b = rows[0], rows[1]
        cosines.append(abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert found["router_cosine"].null_value == pytest.approx(np.mean(cosines), rel=0.05)
    assert found["stable_rank"].null_value == pytest.approx(np.mean(ranks), rel=0.2), "of 8 draws"


def test_experts_by_their_definitions() -> None:
    first, now = experts_of(1), experts_of(2)
    found = metrics_of(with_experts(layer_of(), first), with_experts(layer_of(), now))
    sizes = np.array([np.linalg.norm(m) for m in now])
    assert found["expert_norm"].value == pytest.approx(sizes.mean())
    assert found["expert_norm_spread"].value == pytest.approx(sizes.std() / sizes.mean(), rel=1e-4)
    assert found["expert_norm_top"].value == pytest.approx(sizes.max() / np.median(sizes))
    apart = [
        np.linalg.norm(now[a] - now[b]) / math.hypot(sizes[a], sizes[b])
        for a, b in itertools.combinations(range(EXPERTS), 2)
    ]
    assert found["expert_distance"].value == pytest.approx(np.mean(apart), rel=0.2)
    assert found["expert_distance"].null_value == 1.0
    drift = [np.linalg.norm(b - a) / np.linalg.norm(a) for a, b in zip(first, now, strict=True)]
    assert found["expert_drift"].value == pytest.approx(np.mean(drift), rel=0.2)


def test_drift_is_from_the_first_checkpoint_and_bias_drift_from_the_one_before() -> None:
    first, now = experts_of(1), experts_of(2)
    runs = [
        with_experts(layer_of(selection_bias=(b,) * 2 + (0.0, 0.0), bias_digest=str(b)), m)
        for b, m in ((0.0, first), (1.0, now), (1.5, first))
    ]
    found = metrics_of(*runs)
    assert found["expert_drift"].value == pytest.approx(0.0, abs=1e-6)
    assert found["bias_drift"].value == pytest.approx(0.25)


def test_a_reason_for_null_is_the_one_that_holds() -> None:
    held = with_experts(layer_of(selection_bias=(0.0, 0.5, 0.5, 0.5), bias_digest="x"),
                        experts_of(1))  # fmt: skip
    first = metrics_of(held)
    for name in ("bias_drift", "expert_drift"):
        assert first[name].reason == "there is no earlier checkpoint"
    later = metrics_of(layer_of(), held)
    assert (
        later["bias_drift"].reason
        == "the previous checkpoint has no selection bias for this router"
    )
    assert later["expert_drift"].reason == (
        "the first checkpoint's experts were not read, or are not finite"
    )
    other = metrics_of(layer_of(3), held)
    assert other["expert_drift"].reason == "the first checkpoint does not have this router"
    fewer = metrics_of(with_experts(layer_of(), experts_of(1, 3)), held)
    assert fewer["expert_drift"].reason == "the first checkpoint has another number of experts"


def test_experts_of_zeros_are_not_said_to_be_infinite() -> None:
    zeros = metrics_of(layer_of(expert_norms=(0.0,) * EXPERTS))
    assert zeros["expert_norm"].reason == "every expert's weights are zero"
    lost = metrics_of(layer_of(expert_norms=(None,) * EXPERTS))
    assert lost["expert_norm"].reason == "no expert has finite weights"
    told = metrics_of(layer_of(expert_norms=None, reasons={"experts": "there are none"}))
    assert told["expert_distance"].reason == "there are none"
    quick = metrics_of(layer_of(expert_norms=None), quick=True)
    assert quick["expert_drift"].reason == "experts were not read (--quick)"
    half = metrics_of(layer_of(expert_norms=(0.0, 0.0, 0.0, 2.0)))
    assert half["expert_norm_top"].reason == "the median expert is zero"
    unread = metrics_of(layer_of(row_norms=(), reasons={"router": "an unknown form"}))
    assert unread["row_norm"].reason == "an unknown form"


def test_a_router_without_a_bias_has_no_metrics_of_one() -> None:
    assert "bias_spread" not in metrics_of(layer_of())
    assert "bias_drift" not in metrics_of(layer_of(selection_bias=(None,) * 4, bias_digest="x"))


def test_the_own_row_counts_experts_that_are_not_masked() -> None:
    told = {"coupling": {"largest": [0, 2, 2, None]}}
    found = metrics_of(layer_of(statistics=told))["own_row"]
    assert (found.value, found.null_value, found.n) == (pytest.approx(2 / 3), 1 / EXPERTS, 3)
    masked = metrics_of(layer_of(statistics=told, masked=(1,)))["own_row"]
    assert (masked.value, masked.n) == (1.0, 2)
    none = metrics_of(layer_of(statistics={"coupling": {"largest": [None] * 4}}))["own_row"]
    assert none.value is None
    assert "do not show which side is the input" in str(none.reason)


def test_of_a_checkpoint_the_means_over_layers_and_the_shares_that_moved() -> None:
    first = [layer_of(0, "a"), layer_of(1, "a", row_norms=())]
    second = [
        layer_of(0, "a", expert_digests=("a0", "b1", "b2", "b3")),
        layer_of(1, "b", row_norms=(2.0, 2.0)),
    ]
    rest = {"q": ("attention", 30, "x"), "e": ("other", 10, "x")}
    moved = {"q": ("attention", 30, "x"), "e": ("other", 10, "y")}
    past = past_of(sums_of(*first, rest=rest), sums_of(*second, rest=moved))
    layers = [describe_layer(x, past) for x in second]
    found = describe_checkpoint(layers, past)
    assert found["row_norm"].value == pytest.approx((2.5 + 2.0) / 2)
    assert found["row_norm"].n == 2
    assert found["routers_moved"].value == 0.5
    assert (found["experts_moved"].value, found["experts_moved"].n) == (7 / 8, 8)
    assert (found["others_moved"].value, found["others_moved"].n) == (0.25, 40), "by size"
    alone = past_of(sums_of(*first, rest=rest))
    only = describe_checkpoint([describe_layer(x, alone) for x in first], alone)
    assert only["routers_moved"].reason == "there is no earlier checkpoint"
    assert only["expert_distance"].value is None


def test_two_checkpoints_share_what_is_equal_by_name() -> None:
    a = sums_of(
        layer_of(0, "a", bias_digest="x", expert_digests=("1", "2", "", "4")), layer_of(1, "a"),
        rest={"q": ("attention", 9, "s"), "k": ("attention", 9, "t"), "e": ("other", 9, "u")},
    )  # fmt: skip
    b = sums_of(
        layer_of(0, "a", bias_digest="y", expert_digests=("1", "9", "", "4")), layer_of(2, "a"),
        rest={"q": ("attention", 9, "s"), "k": ("attention", 9, "other"), "n": ("other", 9, "u")},
    )  # fmt: skip
    found = share(a, b)
    assert (found.routers, found.routers_of) == (1, 1), "the other layer is in one alone"
    assert (found.experts, found.experts_of) == (2, 3), "one expert is in neither file"
    assert (found.attention, found.attention_of) == (1, 2)
    assert (found.others, found.others_of) == (0, 0)
    [layer] = found.layers
    assert (layer.layer, layer.router_equal, layer.bias_equal) == (0, True, False)
    assert layer.experts == (0, 3)
    assert share(sums_of(layer_of(0)), sums_of(layer_of(0))).layers[0].bias_equal is None
