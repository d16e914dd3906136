"""A whole layer of experts that are one matrix each: their Jacobians are known."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from scipy.stats import norm

from moegeo_cli.commands.experts.alignment import (
    align_pairs,
    measure_functions,
    spread_rows,
    weight_cosines,
)
from moegeo_cli.commands.experts.layers import MeasuredLayer, measure_layer, null_limit
from moegeo_cli.commands.experts.settings import ExpertSettings
from moegeo_cli.commands.experts.tokens import LayerTokens
from moegeo_cli.expert_functions.functions import Experts
from tests.commands.experts.recorded import DRAWS, functions_of, matrices_of, symmetric, tokens_of
from tests.traces import EXPERTS, WIDTH

SETTINGS = ExpertSettings(rank=1.0)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(scope="module")
def tokens() -> LayerTokens:
    return tokens_of(1)


@pytest.fixture(scope="module")
def layer(tokens: LayerTokens) -> MeasuredLayer:
    return measure_layer(tokens, DRAWS, SETTINGS, listed=3)


def test_alignment_is_the_cosine_of_the_matrices(layer: MeasuredLayer, tokens: LayerTokens) -> None:
    matrices = matrices_of(tokens.block)
    assert layer.alignment_EE is not None
    for a, b in itertools.product(range(EXPERTS), repeat=2):
        assert layer.alignment_EE[a, b] == pytest.approx(cosine(matrices[a], matrices[b]), abs=1e-5)
    record = layer.record
    assert record.directions == 0, "exact"
    np.testing.assert_allclose(
        np.array(record.matrices["mean_jacobian_alignment"]), layer.alignment_EE, atol=1e-4
    )
    assert [m.experts for m in layer.merges] == sorted(
        itertools.combinations(range(EXPERTS), 2), key=lambda p: -layer.alignment_EE[p]
    )[:3]


def test_spectra_are_those_of_the_matrices(layer: MeasuredLayer, tokens: LayerTokens) -> None:
    for expert, matrix in zip(layer.record.expert, matrices_of(tokens.block), strict=True):
        values = np.linalg.svd(matrix, compute_uv=False)
        assert expert.singular_values == pytest.approx(values, rel=1e-4)
        assert expert.stable_rank == pytest.approx((values**2).sum() / values[0] ** 2, rel=1e-4)
        order = np.log(np.arange(1, len(values) + 1))
        slope = np.polyfit(order, np.log(values), 1)[0]
        assert expert.spectral_decay == pytest.approx(slope, rel=1e-3)


def test_norms_are_means_over_the_tokens_that_reach_an_expert(
    layer: MeasuredLayer, tokens: LayerTokens
) -> None:
    x = tokens.x_ND.double().numpy()
    for e, (expert, matrix) in enumerate(
        zip(layer.record.expert, matrices_of(tokens.block), strict=True)
    ):
        own = [np.linalg.norm(matrix @ row) for row, m in zip(x, tokens.mass_NE[:, e], strict=True)
               if m > 0]  # fmt: skip
        assert expert.output_norm == pytest.approx(np.mean(own), rel=1e-5)
        assert expert.tokens == tokens.tokens_E[e]


def test_soft_weights_weigh_output_norms_by_the_distribution() -> None:
    tokens = tokens_of(1, weights="soft")
    layer = measure_layer(tokens, DRAWS, SETTINGS, listed=0)
    x = tokens.x_ND.double().numpy()
    for e, matrix in enumerate(matrices_of(tokens.block)):
        sizes = np.linalg.norm(x @ matrix.T, axis=1)
        expected = (tokens.mass_NE[:, e] * sizes).sum() / tokens.mass_NE[:, e].sum()
        assert layer.record.expert[e].output_norm == pytest.approx(expected, rel=1e-5)
    assert layer.merges == ()


@pytest.mark.parametrize("which", ["routed", "coselected", "all"])
def test_pairs_count_the_tokens_that_were_asked_for(which: str, tokens: LayerTokens) -> None:
    settings = ExpertSettings(tokens=which, jacobian_tokens=9)
    chosen = spread_rows(len(tokens.x_ND), 9)
    experts = Experts(tokens.block, None, WIDTH)
    sums, null, directions = align_pairs(experts, tokens, settings)
    for a, b in itertools.product(range(EXPERTS), repeat=2):
        one, other = tokens.mass_NE[chosen, a] > 0, tokens.mass_NE[chosen, b] > 0
        counted = {"routed": one | other, "coselected": one & other,
                   "all": np.ones(len(chosen), dtype=bool)}[which]  # fmt: skip
        assert sums.tokens_EE[a, b] == counted.sum()
        assert null.tokens_EE[a, b] == counted.sum()
    assert directions == 0


def test_random_directions_agree_within_their_error(tokens: LayerTokens) -> None:
    settings = ExpertSettings(directions=64)
    found = measure_functions(Experts(tokens.block, None, WIDTH), tokens, settings)
    assert found.directions == 64
    matrices = matrices_of(tokens.block)
    for a, b in itertools.combinations(range(EXPERTS), 2):
        gap = found.sums.mean_EE[a, b] - cosine(matrices[a], matrices[b])
        assert 0 < found.sums.error_EE[a, b] < 0.1
        assert abs(gap) < 5 * found.sums.error_EE[a, b]


def test_rows_are_spread_over_all_there_are() -> None:
    np.testing.assert_array_equal(spread_rows(5, 9), [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(spread_rows(5, 5), [0, 1, 2, 3, 4])
    found = spread_rows(1001, 11)
    np.testing.assert_array_equal(found, np.arange(0, 1001, 100))
    assert len(set(spread_rows(257, 256))) == 256


def test_weights_of_unknown_layout_have_no_cosine(tokens: LayerTokens) -> None:
    assert weight_cosines(Experts(tokens.block, None, WIDTH)) is None


def test_the_limit_is_the_normal_quantile_shared_out_over_pairs() -> None:
    functions = functions_of(symmetric(1), null=0.08)
    pairs = EXPERTS * (EXPERTS - 1) / 2
    assert null_limit(functions) == pytest.approx(0.08 * norm.ppf(1 - 0.01 / pairs))
    lost = dataclasses.replace(functions, null=functions_of(np.full((4, 4), np.nan)).sums)
    assert null_limit(lost) is None


def test_an_expert_of_nan_takes_the_layers_functions_and_leaves_its_inputs() -> None:
    tokens = tokens_of(2)
    members = tokens.block.members
    assert members is not None
    with torch.no_grad():
        for place in (1, 3):
            members[place].weight[0, 0] = float("nan")
    layer = measure_layer(tokens, DRAWS, SETTINGS, listed=3)
    problem = "experts 1, 3 of the layer: no finite values"
    assert layer.record.method == problem
    assert layer.record.metrics["alignment"].reason == problem
    assert layer.record.metrics["overlap_input"].value is not None
    assert (layer.alignment_EE, layer.merges, layer.record.null_limit) == (None, (), None)
    assert f"functions: {problem}" in layer.record.expert[0].reasons
    assert layer.record.coexist is None


@pytest.mark.parametrize("copies", [False, True])
def test_inputs_that_overlap_by_more_than_functions_align_coexist(copies: bool) -> None:
    tokens = tokens_of(1)
    line = torch.zeros(len(tokens.x_ND), WIDTH)
    line[:, 2] = torch.linspace(-3, 3, len(line))  # what every expert is given varies alike
    spread = torch.from_numpy(np.random.default_rng(0).normal(0, 0.05, tuple(line.shape)))
    tokens = dataclasses.replace(tokens, x_ND=(line + spread).float())
    members = tokens.block.members
    assert members is not None
    if copies:
        for member in members[1:]:
            member.load_state_dict(members[0].state_dict())
    record = measure_layer(tokens, DRAWS, SETTINGS, listed=0).record
    assert record.metrics["overlap_input"].value == pytest.approx(1.0, abs=0.05)
    assert record.metrics["overlap_chance"].value == pytest.approx(1 / WIDTH)
    assert record.coexist is (not copies)
