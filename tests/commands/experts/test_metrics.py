"""A layer's numbers from its alignments and subspaces, against loops over pairs and draws."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from moegeo_cli.commands.experts.alignment import Functions
from moegeo_cli.commands.experts.metrics import (
    NOT_ENOUGH,
    describe_expert,
    find_nearest,
    layer_metrics,
    list_matrices,
    pair_alignment,
    round_row,
)
from moegeo_cli.records import Metric
from tests.commands.experts.recorded import (
    DRAWS,
    functions_of,
    subspaces_of,
    sums_of,
    symmetric,
    tokens_of,
)
from tests.traces import EXPERTS, LENGTHS, WIDTH

PAIRS = list(itertools.combinations(range(EXPERTS), 2))
# What is null where experts are not functions of one token, and its unit where it is not.
UNITS = {
    "alignment": "cosine", "alignment_size": "cosine", "functional_decorrelation": "1 − cosine",
    "mean_jacobian_alignment": "cosine", "stable_rank": "dimensions",
    "alignment_rotation_null": "standard deviation of a cosine",
    "overlap_output": "mean cos² of angles", "split_half_output": "mean cos² of angles",
    "distance_output": "share of the largest", "effective_rank_output": "dimensions",
    "asymmetry": "overlap − |cosine|",
}  # fmt: skip


def drawn(seed: int = 0) -> Functions:
    """Alignments that differ from token to token."""
    values = np.random.default_rng(seed).uniform(-1, 1, (sum(LENGTHS), EXPERTS, EXPERTS))
    values = (values + values.transpose(0, 2, 1)) / 2
    return dataclasses.replace(functions_of(symmetric(seed)), sums=sums_of(values, seed))


def metrics_of(functions: Functions | None, **changes: object) -> dict[str, Metric]:
    space = subspaces_of(symmetric(9), **changes)
    outputs = None if functions is None else space
    return layer_metrics(tokens_of(), functions, space, outputs, DRAWS)


def by_pair(sums: object, counts_G: np.ndarray) -> list[float]:
    """The mean alignment of each pair where each group of sequences counts so often."""
    top, weight = sums.top_GEE, sums.weight_GEE  # type: ignore[attr-defined]
    return [
        sum(n * top[g, a, b] for g, n in enumerate(counts_G))
        / sum(n * weight[g, a, b] for g, n in enumerate(counts_G))
        for a, b in PAIRS
    ]


def test_alignment_and_its_size_are_means_over_pairs_with_bootstrap_intervals() -> None:
    functions = drawn(1)
    found = metrics_of(functions)
    whole = by_pair(functions.sums, np.ones(len(LENGTHS)))
    draws = np.array([by_pair(functions.sums, counts_G) for counts_G in DRAWS.counts_BG[:200]])
    assert found["alignment"].value == pytest.approx(np.mean(whole))
    assert found["alignment_size"].value == pytest.approx(np.mean(np.abs(whole)))
    assert found["functional_decorrelation"].value == pytest.approx(1 - np.mean(np.abs(whole)))
    few = dataclasses.replace(DRAWS, counts_BG=DRAWS.counts_BG[:200])
    space = subspaces_of(symmetric(9))
    again = layer_metrics(tokens_of(), functions, space, space, few)
    for name, values in (
        ("alignment", draws.mean(1)), ("alignment_size", np.abs(draws).mean(1)),
        ("functional_decorrelation", 1 - np.abs(draws).mean(1)),
    ):  # fmt: skip
        low, high = np.quantile(values, [0.025, 0.975])
        assert again[name].ci_low == pytest.approx(min(low, again[name].value))
        assert again[name].ci_high == pytest.approx(max(high, again[name].value))
    assert found["alignment"].n == len(PAIRS)


def test_nulls_are_means_over_disturbed_experts_of_others() -> None:
    functions = drawn(2)
    found = metrics_of(functions)
    null = functions.null.mean_EE
    off = [null[a, b] for a in range(EXPERTS) for b in range(EXPERTS) if a != b]
    assert found["alignment"].null_value == pytest.approx(np.mean(off))
    assert found["alignment_size"].null_value == pytest.approx(np.mean(np.abs(off)))
    assert found["functional_decorrelation"].null_value == pytest.approx(1 - np.mean(np.abs(off)))
    assert found["alignment_rotation_null"].value == pytest.approx(1 / WIDTH)
    assert found["overlap_chance"].value == pytest.approx(2 / WIDTH)


def test_overlaps_are_means_over_pairs_and_asymmetry_is_what_they_exceed_alignment_by() -> None:
    functions = drawn(3)
    found = metrics_of(functions)
    overlap = symmetric(9)
    mean = np.mean([overlap[a, b] for a, b in PAIRS])
    assert found["overlap_input"].value == pytest.approx(mean)
    assert found["overlap_input"].null_value == pytest.approx(0.3)
    assert found["distance_output"].value == pytest.approx(1 - mean)
    assert found["distance_output"].null_value == pytest.approx(0.7)
    assert found["split_half_input"].value == pytest.approx(0.9)
    assert found["effective_rank_output"].value == pytest.approx(3.0)
    size = found["alignment_size"].value
    assert size is not None
    assert found["asymmetry"].value == pytest.approx(mean - size)
    assert found["stable_rank"].value == pytest.approx(1.25)


def test_pairs_without_a_value_are_left_out() -> None:
    overlap = symmetric(9)
    overlap[1] = overlap[:, 1] = np.nan
    space = subspaces_of(overlap, reasons=(None, "4 tokens are fewer than 8", None, None))
    found = layer_metrics(tokens_of(), drawn(4), space, space, DRAWS)["overlap_input"]
    assert found.value == pytest.approx(np.mean([overlap[0, 2], overlap[0, 3], overlap[2, 3]]))
    assert found.n == 3


def test_experts_that_are_no_functions_leave_the_reason_and_the_units() -> None:
    problem = "attention experts: what they compute depends on the other tokens of a sequence"
    plain = tokens_of()
    tokens = dataclasses.replace(plain, block=dataclasses.replace(plain.block, problem=problem))
    space = subspaces_of(symmetric(9))
    found = layer_metrics(tokens, None, space, None, DRAWS)
    measured = metrics_of(drawn(5))
    assert set(measured) - set(found) == {"alignment_rotation_null"}
    for name, unit in UNITS.items():
        assert measured[name].unit == unit, name
        if name in found:
            assert (found[name].value, found[name].reason) == (None, problem), name
            assert found[name].unit == unit, name
    assert found["overlap_input"].value is not None


def test_where_no_expert_has_tokens_enough_the_reason_stands() -> None:
    nothing = np.full((EXPERTS, EXPERTS), np.nan)
    few = subspaces_of(
        nothing, half_overlap_E=np.full(EXPERTS, np.nan), effective_rank_E=np.full(EXPERTS, np.nan),
        null_overlap_EE=nothing,
    )  # fmt: skip
    found = layer_metrics(tokens_of(), drawn(6), few, few, DRAWS)
    assert found["overlap_input"].reason == NOT_ENOUGH
    assert found["overlap_input"].null_value is None
    assert found["effective_rank_input"].reason == NOT_ENOUGH
    assert found["split_half_output"].reason == "no expert has enough tokens in both halves"
    assert found["asymmetry"].reason == NOT_ENOUGH


def test_matrices_have_six_digits_and_null_for_what_is_not_known() -> None:
    functions, space = drawn(7), subspaces_of(symmetric(9))
    found = list_matrices(functions, space, space)
    assert set(found) == {
        "alignment", "alignment_error", "alignment_tokens", "alignment_null",
        "mean_jacobian_alignment", "weight_cosine", "overlap_input", "overlap_input_null",
        "distance_input", "distance_input_null", "overlap_output", "overlap_output_null",
        "distance_output", "distance_output_null",
    }  # fmt: skip
    np.testing.assert_allclose(found["alignment"], functions.sums.mean_EE, rtol=1e-5)
    assert round_row([1 / 3, float("nan"), float("inf"), 1234567.8]) == (
        0.333333, None, None, 1234570.0
    )  # fmt: skip
    assert set(list_matrices(None, space, None)) == {n for n in found if "input" in n}
    unknown = dataclasses.replace(functions, weight_cosine_EE=None)
    assert "weight_cosine" not in list_matrices(unknown, space, space)


def test_the_nearest_expert_is_the_most_aligned_other_one() -> None:
    functions = drawn(8)
    mean = functions.sums.mean_EE
    for e in range(EXPERTS):
        assert find_nearest(functions, e) == max(
            (o for o in range(EXPERTS) if o != e), key=lambda o: mean[e, o]
        )
    assert find_nearest(None, 0) is None
    lonely = dataclasses.replace(
        functions, sums=sums_of(np.full((3, EXPERTS, EXPERTS), np.nan))
    )  # fmt: skip
    assert find_nearest(lonely, 0) is None
    found = pair_alignment(functions, DRAWS, 0, 2)
    assert found.value == pytest.approx(mean[0, 2])
    assert found.n == int(functions.sums.tokens_EE[0, 2])
    assert found.null_value == pytest.approx(functions.null.mean_EE[0, 2])


def test_an_expert_has_a_reason_for_each_null() -> None:
    no_loss = "no token counts towards a loss"
    tokens = tokens_of(tokens_E=np.array([5, 0, 7, 8]), fisher_trace_E=no_loss)
    reasons = (None, "0 tokens are fewer than 8", None, None)
    halves = np.array([0.5, np.nan, np.nan, 0.5])
    space = subspaces_of(symmetric(9), reasons=reasons, half_overlap_E=halves)
    functions = drawn(9)
    norm_E = np.array([1.0, np.nan, 3.0, 4.0])
    told = [
        describe_expert(e, tokens, functions, space, space, norm_E, DRAWS) for e in range(EXPERTS)
    ]
    assert told[0].reasons == ("Fisher trace: no token counts towards a loss",)
    assert told[1].reasons == (
        "inputs: 0 tokens are fewer than 8", "outputs: 0 tokens are fewer than 8",
        "no token of the probe is dispatched to it",
    )  # fmt: skip
    assert told[2].reasons[0] == "inputs: too few tokens in one of its two halves"
    assert (told[1].output_norm, told[1].fisher_trace, told[1].split_half_input) == (None,) * 3
    assert (told[0].output_norm, told[0].split_half_input) == (1.0, 0.5)
    assert told[3].nearest == find_nearest(functions, 3)
    assert told[3].singular_values == (2.0, 1.0)
    bare = describe_expert(0, tokens, None, space, None, np.full(4, np.nan), DRAWS)
    assert (bare.nearest, bare.singular_values, bare.rank_output) == (None, None, None)
