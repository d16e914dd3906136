"""Which experts are ranked to merge or to prune, against plain sorting and products by hand."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from moegeo_cli.commands.experts.candidates import (
    NO_FUNCTIONS,
    merge_candidates,
    notes_on_unranked,
    prune_candidates,
    prune_scores,
    rank_pairs,
    rank_singles,
    rank_singles_by,
)
from tests.commands.experts.recorded import layer_of, merge_of, record_of

MATRICES = {
    "alignment": "alignment_EE", "overlap": "overlap_EE", "weight cosine": "weight_cosine_EE",
}  # fmt: skip


@pytest.mark.parametrize("matrix", MATRICES)
def test_pairs_of_all_layers_are_ranked_by_the_matrix_that_was_asked_for(matrix: str) -> None:
    layers = [layer_of(0, seed=1), layer_of(1, seed=2, count=3)]
    getattr(layers[0], MATRICES[matrix])[0, 2] = getattr(layers[0], MATRICES[matrix])[2, 0] = np.nan
    expected = []
    for place, layer in enumerate(layers):
        values = getattr(layer, MATRICES[matrix])
        for a, b in itertools.combinations(range(len(values)), 2):
            if not np.isnan(values[a, b]):
                expected.append((values[a, b], (place, a, b)))
    expected.sort(reverse=True)
    assert rank_pairs(layers, matrix) == [pair for _, pair in expected]
    assert len(expected) == 6 - 1 + 3


def test_a_layer_without_the_matrix_takes_no_part() -> None:
    layers = [layer_of(0, alignment_EE=None), layer_of(1, weight_cosine_EE=None)]
    assert {place for place, _, _ in rank_pairs(layers, "alignment")} == {1}
    assert {place for place, _, _ in rank_pairs(layers, "weight cosine")} == {0}
    assert {place for place, _ in rank_singles_by(layers, "weight cosine")} == {0}


def test_merge_candidates_are_the_best_of_all_layers() -> None:
    layers = [
        layer_of(0, merges=(merge_of(0, 0, 1, 0.9), merge_of(0, 1, 2, 0.2))),
        layer_of(3, merges=(merge_of(3, 2, 3, 0.5), merge_of(3, 0, 1, -0.1))),
    ]
    found = merge_candidates(layers, 3)
    assert [(m.layer, m.experts) for m in found] == [(0, (0, 1)), (3, (2, 3)), (0, (1, 2))]
    assert len(merge_candidates(layers, 9)) == 4


def test_the_prune_score_is_a_product_of_shares_of_the_mean() -> None:
    layer = layer_of()
    score_E = prune_scores(layer)
    assert not isinstance(score_E, str)
    assert not isinstance(layer.fisher_trace_E, str)
    norms = [e.output_norm or 0.0 for e in layer.record.expert]
    for e, score in enumerate(score_E):
        parts = [
            float(values[e]) / float(np.mean(values))
            for values in (layer.mass_E, norms, layer.fisher_trace_E)
        ]
        assert score == pytest.approx(parts[0] * parts[1] * parts[2])


def test_an_expert_without_tokens_has_a_score_of_zero_and_says_so() -> None:
    record = record_of()
    idle = dataclasses.replace(record.expert[2], tokens=0, output_norm=None)
    record = dataclasses.replace(record, expert=(*record.expert[:2], idle, record.expert[3]))
    layer = layer_of(record=record)
    score_E = prune_scores(layer)
    assert not isinstance(score_E, str)
    assert score_E[2] == 0.0
    # its mass and trace are not in the means either
    own = layer.mass_E * [1, 1, 0, 1]
    norms, traces = np.array([1.0, 2.0, 0.0, 4.0]), layer.fisher_trace_E * np.array([1, 1, 0, 1])
    expected = own / own.mean() * norms / norms.mean() * traces / traces.mean()
    np.testing.assert_allclose(score_E, expected)
    first = prune_candidates([layer], 1, narrow=False)[0]
    assert (first.expert, first.score) == (2, 0.0)
    assert first.reason == "no token of the probe is dispatched to it"


def test_the_least_comes_first_and_its_reason_names_the_three_parts() -> None:
    layers = [layer_of(0), layer_of(1, mass_E=np.array([0.01, 0.3, 0.3, 0.39]))]
    scores = [
        (score, (place, e))
        for place, layer in enumerate(layers)
        for e, score in enumerate(prune_scores(layer))
    ]
    assert rank_singles(layers) == [single for _, single in sorted(scores)]
    [least] = prune_candidates(layers, 1, narrow=True)
    assert (least.layer, least.expert, least.narrow) == (1, 0, True)
    assert least.reason == (
        "0.04 of the fair share of combine weight, 0.40 of the mean output norm, 1.60 of the mean "
        "Fisher trace; on this text alone"
    )
    assert least.score == pytest.approx(0.04 * 0.4 * 1.6)


def test_experts_are_ranked_by_their_nearest_other_one() -> None:
    layer = layer_of(seed=5)
    layer.overlap_EE[3] = layer.overlap_EE[:, 3] = np.nan  # no subspace: no neighbour
    nearest = {
        e: max(layer.overlap_EE[e, o] for o in range(3) if o != e) for e in range(3)
    }  # fmt: skip
    expected = sorted(nearest, key=lambda e: (-nearest[e], e))
    assert rank_singles_by([layer], "overlap") == [(0, e) for e in expected]


def test_layers_without_a_ranking_are_named_by_their_reason() -> None:
    zero = np.zeros(4)
    layers = [
        layer_of(0, fisher_trace_E="no token counts towards a loss"),
        layer_of(1, fisher_trace_E="no token counts towards a loss"),
        layer_of(2, fisher_trace_E=zero),
        layer_of(3, mass_E=zero),
        layer_of(4, alignment_EE=None),
        layer_of(5),
    ]
    assert prune_scores(layers[4]) == NO_FUNCTIONS
    assert notes_on_unranked(layers) == [
        "no prune candidates in layers 0, 1: no token counts towards a loss",
        "no prune candidates in layer 2: the Fisher trace of every expert is 0",
        "no prune candidates in layer 3: the combine weight of every expert is 0",
    ]
    assert {place for place, _ in rank_singles(layers)} == {5}
