"""Moves between checkpoints against loops over tokens, and the bounds that theory sets."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from moegeo_cli.geometry.dynamics import (
    PathLength,
    Snapshot,
    bias_response,
    saturation,
    step_estimates,
)
from moegeo_cli.geometry.resample import Estimate, group_sequences, make_draws
from moegeo_cli.geometry.scoring import probabilities

M, E, D, K = 48, 6, 9, 2
DRAWS = make_draws(group_sequences(12), count=40)
X = np.random.default_rng(0).normal(size=(M, D)).astype(np.float32)


def geodesic_excess(*path: Snapshot) -> Estimate:
    length = PathLength()
    for point in path:
        length.add_checkpoint(point)
    return length.excess(DRAWS)


def snapshot(
    weight: np.ndarray, x: np.ndarray = X, scoring: str = "softmax", bias: np.ndarray | None = None
) -> Snapshot:
    logits = x.astype(float) @ weight.T + (0 if bias is None else bias)
    return Snapshot(
        logits_ME=logits,
        selected_MK=np.argsort(-logits, axis=1, kind="stable")[:, :K],
        group_M=np.arange(M) % 12,
        scoring=scoring,
        weight_ED=weight,
        bias_E=bias,
        x_ND=x,
        input_rows_N=np.arange(M),
        top_k=K,
    )


def weights(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(E, D))


def arccos_distance(p: np.ndarray, q: np.ndarray) -> float:
    return 2 * math.acos(min(1.0, float(np.sqrt(p * q).sum())))


def value(found: dict, name: str) -> float:
    assert found[name].value is not None, found[name].reason
    return float(found[name].value)


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
def test_a_step_against_loops(scoring: str) -> None:
    before = snapshot(weights(1), scoring=scoring, bias=np.linspace(0, 1, E))
    moved = X + np.random.default_rng(9).normal(size=X.shape).astype(np.float32) * 0.3
    after = snapshot(weights(1) + 0.2 * weights(2), moved, scoring, np.linspace(1, 0, E))
    found = step_estimates(before, after, DRAWS)
    p, q = before.probabilities_ME, after.probabilities_ME
    u = np.full(E, 1 / E)
    d_max = 2 * math.acos(1 / math.sqrt(E))
    steps, diagonals, fixed, total, moving = [], [], [], [], []
    for t in range(M):
        change = X[t].astype(float) @ (after.weight_ED - before.weight_ED).T
        change += np.linspace(1, 0, E) - np.linspace(0, 1, E)
        z = before.logits_ME[t]
        slope = np.ones(E) if scoring == "softmax" else 1 - 1 / (1 + np.exp(-z))
        jacobian = (np.eye(E) - p[t][None, :]) * slope[None, :]  # ∂ ln p_a / ∂ z_e
        fisher = jacobian.T @ np.diag(p[t]) @ jacobian
        steps.append(change @ fisher @ change)
        diagonals.append(float((np.diag(fisher) * change**2).sum()))
        there = probabilities((z + change)[None], scoring)[0]
        fixed.append(arccos_distance(p[t], there) ** 2)
        total.append(arccos_distance(p[t], q[t]) ** 2)
        moving.append(arccos_distance(there, q[t]) ** 2)
    speed = np.mean([arccos_distance(a, b) for a, b in zip(p, q, strict=True)])
    rate = np.mean(
        [arccos_distance(b, u) - arccos_distance(a, u) for a, b in zip(p, q, strict=True)]
    )
    expected = {
        "speed": speed,
        "fsi_rate": rate / d_max,
        "fsi_rate_bound": speed / d_max,
        "fsi_rate_share": abs(rate) / speed,
        "fisher_step": np.mean(steps),
        "fisher_step_root": math.sqrt(np.mean(steps)),
        "rms_fixed_input": math.sqrt(np.mean(fixed)),
        "rms_total": math.sqrt(np.mean(total)),
        "rms_moving_input": math.sqrt(np.mean(moving)),
        "diagonal_error": np.mean(diagonals) / np.mean(steps) - 1,
    }
    for name, number in expected.items():
        assert value(found, name) == pytest.approx(number, rel=1e-5), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 3.0))
def test_fsi_never_changes_faster_than_its_bound(seed: int, size: float) -> None:
    before = snapshot(weights(seed))
    after = snapshot(weights(seed) + size * weights(seed + 1))
    found = step_estimates(before, after, DRAWS)
    assert abs(value(found, "fsi_rate")) <= value(found, "fsi_rate_bound") * (1 + 1e-9)
    assert 0 <= value(found, "fsi_rate_share") <= 1


def test_small_steps_are_as_long_as_the_fisher_metric_says() -> None:
    before = snapshot(weights(3))
    after = snapshot(weights(3) + 1e-3 * weights(4))
    found = step_estimates(before, after, DRAWS)
    root = value(found, "fisher_step_root")
    assert root == pytest.approx(value(found, "rms_fixed_input"), rel=1e-2)
    assert value(found, "rms_moving_input") == pytest.approx(0.0, abs=1e-6 * root + 1e-9)


def test_the_same_vector_on_every_row_is_no_step() -> None:
    before = snapshot(weights(5))
    after = snapshot(weights(5) + np.random.default_rng(6).normal(size=D))
    found = step_estimates(before, after, DRAWS)
    assert value(found, "speed") < 1e-6
    assert value(found, "fisher_step") < 1e-12


def test_a_geodesic_has_no_excess_and_a_detour_has_its_own() -> None:
    p = probabilities(snapshot(weights(1)).logits_ME, "softmax")
    q = probabilities(snapshot(weights(2)).logits_ME, "softmax")

    def at(part: float) -> Snapshot:
        """A point of the great circle between √p and √q."""
        a, b = np.sqrt(p), np.sqrt(q)
        angle = np.arccos((a * b).sum(1, keepdims=True))
        root = (np.sin((1 - part) * angle) * a + np.sin(part * angle) * b) / np.sin(angle)
        return dataclasses.replace(snapshot(weights(1)), logits_ME=2 * np.log(root))

    straight = geodesic_excess(at(0.0), at(0.3), at(0.8), at(1.0))
    assert straight.value == pytest.approx(0.0, abs=1e-6)
    back = geodesic_excess(at(0.0), at(0.8), at(0.3), at(1.0))
    assert back.value == pytest.approx(1.0, abs=1e-6)  # 0.8 + 0.5 + 0.7 of the way, less 1


def test_excess_is_null_where_nothing_moved_or_too_few_were_measured() -> None:
    still = snapshot(weights(1))
    assert geodesic_excess(still, still).reason == "needs three checkpoints"
    assert "rounding" in (geodesic_excess(still, still, still).reason or "")


def test_saturation_is_corrected_for_chance() -> None:
    one = snapshot(weights(1))
    assert saturation(one, one, DRAWS).value == pytest.approx(1.0)
    generator = np.random.default_rng(0)
    count = 40_000

    def random(seed: int) -> Snapshot:
        chosen = np.argsort(generator.random((count, E)), axis=1)[:, :K]
        return dataclasses.replace(
            one, logits_ME=np.zeros((count, E)), selected_MK=chosen, group_M=np.arange(count) % 12
        )

    assert saturation(random(1), random(2), DRAWS).value == pytest.approx(0.0, abs=0.01)


def test_other_tokens_are_refused_with_a_reason() -> None:
    one = snapshot(weights(1))
    fewer = dataclasses.replace(one, logits_ME=one.logits_ME[:-1])
    found = step_estimates(one, fewer, DRAWS)
    assert all(e.value is None and "same tokens" in (e.reason or "") for e in found.values())
    broken = dataclasses.replace(one, logits_ME=np.full_like(one.logits_ME, np.nan))
    assert step_estimates(one, broken, DRAWS)["speed"].reason == "some logits are not finite"


def test_a_bias_response_is_the_rank_correlation_with_the_load_before() -> None:
    rng = np.random.default_rng(4)
    selected_MK = np.array([rng.choice(6, 2, replace=False) for _ in range(200)])
    before = _with_bias(selected_MK, np.zeros(6, np.float32))
    load_E = np.bincount(selected_MK.ravel(), minlength=6)
    moved_E = rng.normal(size=6).astype(np.float32)
    expected = spearmanr(moved_E, load_E).statistic
    assert bias_response(before, _with_bias(selected_MK, moved_E)).value == pytest.approx(expected)
    wrong = bias_response(before, _with_bias(selected_MK, np.sign(load_E - load_E.mean())))
    assert wrong.value is not None
    assert wrong.value > 0.7
    for bias_E in (None, np.zeros(6), np.full(6, 0.3)):
        assert bias_response(before, _with_bias(selected_MK, bias_E)).value is None
    masked = np.where(np.arange(6) == 2, -np.inf, moved_E)
    assert bias_response(before, _with_bias(selected_MK, masked)).n == 5


def _with_bias(selected_MK: np.ndarray, bias_E: np.ndarray | None) -> Snapshot:
    logits_ME = np.zeros((len(selected_MK), 6), np.float32)
    return Snapshot(
        logits_ME, selected_MK, np.zeros(len(selected_MK), int), "sigmoid", np.zeros((6, 3)), None,
        None, None, top_k=2, selection_bias_E=bias_E,
    )  # fmt: skip
