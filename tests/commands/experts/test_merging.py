"""Pairs to merge: chosen, with their intervals and their words."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from moegeo_cli.commands.experts.merging import best_merges, disagreements
from tests.commands.experts.recorded import (
    DRAWS,
    functions_of,
    record_of,
    subspaces_of,
    sums_of,
    symmetric,
)
from tests.traces import LENGTHS


def test_the_best_aligned_pairs_come_first_with_what_is_known_of_them() -> None:
    mean, overlap = symmetric(1), symmetric(2)
    record = record_of(layer=3, null_limit=0.5)
    found = best_merges(record, functions_of(mean), subspaces_of(overlap), DRAWS, 4)
    best = sorted(itertools.combinations(range(4), 2), key=lambda p: -mean[p])[:4]
    assert [m.experts for m in found] == best
    for merge in found:
        assert (merge.layer, merge.router) == (3, "model.layers.3.mlp.gate")
        assert merge.alignment.value == pytest.approx(mean[merge.experts])
        assert merge.overlap.value == pytest.approx(overlap[merge.experts])
        assert merge.overlap.null_value == pytest.approx(0.3)
        assert merge.weight_cosine == pytest.approx(mean[merge.experts] / 2)
        assert merge.above_null == (mean[merge.experts] > 0.5)
        side = "above" if merge.above_null else "within"
        assert f"{side} what independent experts reach (0.500)" in merge.reason
        assert merge.reason.startswith(f"alignment {mean[merge.experts]:.3f} at ")
        words = f"their inputs overlap by {overlap[merge.experts]:.2f} (random tokens 0.30)"
        assert words in merge.reason


def test_the_error_of_directions_is_said_where_there_is_one() -> None:
    functions = functions_of(symmetric(1))
    rough = sums_of(np.repeat(symmetric(1)[None], sum(LENGTHS), 0), variance=0.25)
    space = subspaces_of(symmetric(2))
    found = best_merges(record_of(), dataclasses.replace(functions, sums=rough), space, DRAWS, 1)
    a, b = found[0].experts
    assert f" ± {rough.error_EE[a, b]:.3f} (directions)" in found[0].reason
    assert "independent experts" not in found[0].reason, "without a limit none is said"
    exact = best_merges(record_of(), functions, space, DRAWS, 1)
    assert "directions" not in exact[0].reason


def test_an_expert_without_a_subspace_leaves_the_overlap_null_with_its_reason() -> None:
    reasons = ("3 tokens are fewer than 8", None, None, None)
    space = subspaces_of(symmetric(2), reasons=reasons)
    found = best_merges(record_of(), functions_of(symmetric(1)), space, DRAWS, 6)
    for merge in found:
        own = merge.overlap.reason
        assert own == ("expert 0: 3 tokens are fewer than 8" if 0 in merge.experts else None)
        assert ("their inputs overlap" in merge.reason) == (0 not in merge.experts)


def test_pairs_that_no_token_counts_for_are_no_candidates() -> None:
    values = np.repeat(symmetric(1)[None], sum(LENGTHS), 0)
    values[:, 2, :] = values[:, :, 2] = np.nan
    functions = dataclasses.replace(functions_of(symmetric(1)), sums=sums_of(values))
    found = best_merges(record_of(), functions, subspaces_of(symmetric(2)), DRAWS, 9)
    assert {m.experts for m in found} == {(0, 1), (0, 3), (1, 3)}


def test_the_interval_of_an_overlap_is_linear_in_what_leaving_out_a_group_changes() -> None:
    overlap = symmetric(2)
    left = overlap + np.random.default_rng(0).normal(0, 0.02, (len(LENGTHS), 4, 4))
    space = subspaces_of(overlap, left_overlap_GEE=left)
    merge = best_merges(record_of(), functions_of(symmetric(1)), space, DRAWS, 1)[0]
    a, b = merge.experts
    groups = len(LENGTHS)
    influence = [(groups - 1) * (left[:, a, b].mean() - left[g, a, b]) for g in range(groups)]
    values = [
        overlap[a, b] + sum((n - 1) * i for n, i in zip(counts, influence, strict=True)) / groups
        for counts in DRAWS.counts_BG
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    assert (merge.overlap.ci_low, merge.overlap.ci_high) == (
        pytest.approx(low), pytest.approx(high),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_pairs_that_rank_far_apart_by_inputs_and_by_function_are_flagged(seed: int) -> None:
    mean, overlap = symmetric(seed, 5), symmetric(seed + 50, 5)
    overlap[4] = overlap[:, 4] = np.nan
    found = disagreements(functions_of(mean), subspaces_of(overlap))
    assert found is not None
    pairs = list(itertools.combinations(range(4), 2))  # those with both
    for a, b in itertools.product(range(5), repeat=2):
        gap = 0.0
        if (a, b) in pairs:
            seen = sum(overlap[p] <= overlap[a, b] for p in pairs) / len(pairs)
            done = sum(mean[p] <= mean[a, b] for p in pairs) / len(pairs)
            gap = seen - done
        assert found[0][a, b] == (gap > 0.5)
        assert found[1][a, b] == (gap < -0.5)


def test_a_pair_that_inputs_rank_otherwise_says_which_way() -> None:
    values = np.linspace(0.1, 0.9, 6)
    mean, overlap = np.eye(4), np.eye(4)
    rows, columns = np.triu_indices(4, 1)
    mean[rows, columns] = mean[columns, rows] = values
    overlap[rows, columns] = overlap[columns, rows] = values[::-1]
    found = best_merges(record_of(), functions_of(mean), subspaces_of(overlap), DRAWS, 6)
    assert [m.disagrees for m in found] == [True, False, False, False, False, True]
    assert found[0].reason.endswith("by their inputs they would rank far lower")
    assert found[5].reason.endswith("by their inputs they would rank far higher")


def test_too_few_pairs_do_not_disagree() -> None:
    assert disagreements(functions_of(symmetric(1, 3)), subspaces_of(symmetric(2, 3))) is None
    assert disagreements(None, subspaces_of(symmetric(2))) is None
