"""Subspaces of experts' tokens, against decompositions of centred rows by numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from moegeo_cli.commands.experts.subspaces import ExpertRows, measure_subspaces

WIDTH, RANK, GROUPS = 7, 2, 6


def rows_in(
    axes: tuple[int, ...], seed: int, count: int = 60, noise: float = 0.0, mean: float = 3.0
) -> ExpertRows:
    """Rows about a mean that vary along some axes, and a little along the others."""
    generator = np.random.default_rng(seed)
    rows = noise * generator.normal(size=(count, WIDTH))
    rows[:, axes] += generator.normal(size=(count, len(axes)))
    weights = generator.uniform(0.5, 1.5, count)
    return ExpertRows(rows + mean, weights, generator.integers(0, GROUPS, count))


def basis(rows: np.ndarray, weights: np.ndarray, rank: int = RANK) -> np.ndarray:
    """Leading principal directions about the weighted mean, (D, R)."""
    mean = np.average(rows, axis=0, weights=weights)
    scaled = (rows - mean) * np.sqrt(weights)[:, None]
    return np.linalg.svd(scaled, full_matrices=False)[2][:rank].T


def likeness(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Overlap and distance of two subspaces, from the cosines of their angles."""
    cosines = np.clip(np.linalg.svd(a.T @ b, compute_uv=False), 0, 1)
    angles = np.arccos(cosines)
    return float((cosines**2).mean()), float(
        np.linalg.norm(angles) / (np.sqrt(len(angles)) * np.pi / 2)
    )


EXPERTS = [
    rows_in((0, 1), 1, noise=0.3),
    rows_in((1, 2), 2, noise=0.3),
    rows_in((3, 4), 3, noise=0.3),
]
POOL = np.concatenate([e.rows_ND for e in EXPERTS])


def test_overlaps_and_distances_are_those_of_principal_directions() -> None:
    found = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=0)
    bases = [basis(e.rows_ND, e.weight_N) for e in EXPERTS]
    for a, b in itertools.combinations(range(3), 2):
        overlap, distance = likeness(bases[a], bases[b])
        assert found.overlap_EE[a, b] == found.overlap_EE[b, a] == pytest.approx(overlap, abs=1e-9)
        assert found.distance_EE[a, b] == pytest.approx(distance, abs=1e-7)
    np.testing.assert_allclose(found.overlap_EE.diagonal(), 1.0)
    np.testing.assert_allclose(found.distance_EE.diagonal(), 0.0)
    assert (found.rank, found.width, found.reasons) == (RANK, WIDTH, (None,) * 3)


def test_planted_planes_are_told_apart() -> None:
    same, one, none = rows_in((0, 1), 4, mean=-5.0), rows_in((1, 2), 5), rows_in((4, 6), 6)
    found = measure_subspaces([rows_in((0, 1), 1), same, one, none], POOL, RANK, GROUPS, seed=0)
    np.testing.assert_allclose(found.overlap_EE[0], [1.0, 1.0, 0.5, 0.0], atol=1e-12)
    np.testing.assert_allclose(found.distance_EE[0], [0.0, 0.0, 0.5**0.5, 1.0], atol=1e-7)


def test_halves_are_sequences_of_even_and_of_odd_groups() -> None:
    found = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=0)
    for e, own in enumerate(EXPERTS):
        parts = [own.group_N % 2 == half for half in (0, 1)]
        overlap, distance = likeness(*(basis(own.rows_ND[p], own.weight_N[p]) for p in parts))
        assert found.half_overlap_E[e] == pytest.approx(overlap, abs=1e-9)
        assert found.half_distance_E[e] == pytest.approx(distance, abs=1e-7)
    lopsided = ExpertRows(EXPERTS[0].rows_ND, EXPERTS[0].weight_N, np.zeros(60, dtype=int))
    assert np.isnan(measure_subspaces([lopsided], POOL, RANK, GROUPS, 0).half_overlap_E[0])


def test_the_effective_rank_is_the_exponential_of_the_entropy_of_the_spectrum() -> None:
    found = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=0)
    for e, own in enumerate(EXPERTS):
        covariance = np.cov(own.rows_ND.T, aweights=own.weight_N, ddof=0)
        shares = np.linalg.eigvalsh(covariance)
        shares = shares / shares.sum()
        expected = np.exp(-(shares * np.log(shares)).sum())
        assert found.effective_rank_E[e] == pytest.approx(expected)


def test_leaving_out_a_group_is_leaving_out_its_rows() -> None:
    found = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=0)
    for g in range(GROUPS):
        bases = [basis(e.rows_ND[e.group_N != g], e.weight_N[e.group_N != g]) for e in EXPERTS]
        for a, b in itertools.combinations(range(3), 2):
            overlap, distance = likeness(bases[a], bases[b])
            # all 7 components are among the 4R that are kept, so nothing is left out
            assert found.left_overlap_GEE[g, a, b] == pytest.approx(overlap, abs=1e-9)
            assert found.left_distance_GEE[g, a, b] == pytest.approx(distance, abs=1e-7)


def test_one_group_has_nothing_to_leave_out() -> None:
    alone = [ExpertRows(e.rows_ND, e.weight_N, np.zeros(60, dtype=int)) for e in EXPERTS]
    found = measure_subspaces(alone, POOL, RANK, 1, seed=0)
    assert found.left_overlap_GEE.shape == (1, 3, 3)
    assert np.isnan(found.left_overlap_GEE).all()


def test_a_share_of_variance_asks_for_the_rank_that_half_of_the_experts_reach() -> None:
    for share in (0.5, 0.8, 0.95):
        needed = []
        for own in EXPERTS:
            values = np.linalg.eigvalsh(np.cov(own.rows_ND.T, aweights=own.weight_N, ddof=0))[::-1]
            reached = np.cumsum(values) / values.sum()
            needed.append(next(i + 1 for i, r in enumerate(reached) if r >= share))
        assert measure_subspaces(EXPERTS, POOL, share, GROUPS, 0).rank == sorted(needed)[1]


def test_an_expert_with_too_few_tokens_or_too_flat_ones_says_so() -> None:
    few = ExpertRows(EXPERTS[1].rows_ND[:7], EXPERTS[1].weight_N[:7], EXPERTS[1].group_N[:7])
    unweighted = ExpertRows(
        EXPERTS[1].rows_ND, np.where(np.arange(60) < 7, 1.0, 0.0), EXPERTS[1].group_N
    )
    line = rows_in((2,), 7)
    found = measure_subspaces([EXPERTS[0], few, unweighted, line], POOL, RANK, GROUPS, 0)
    assert found.reasons[0] is None
    assert found.reasons[1] is not None
    assert found.reasons[1] == found.reasons[2], "tokens of no weight are none"
    assert "7 tokens" in found.reasons[1]
    assert found.reasons[3] == "its tokens span 1 dimensions, fewer than 2"
    assert np.isnan(found.overlap_EE[0, 1:]).all()
    assert np.isnan(found.null_overlap_EE[0, 1:]).all()
    assert np.isnan(found.effective_rank_E[1:]).all()


def test_the_null_is_of_as_many_tokens_of_the_layer_and_the_same_each_time() -> None:
    found = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=0)
    again = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=0)
    np.testing.assert_array_equal(found.null_overlap_EE, again.null_overlap_EE)
    generator, drawn = np.random.default_rng(11), []
    for _ in range(200):
        one, other = (basis(POOL[generator.permutation(len(POOL))[:60]], np.ones(60)) for _ in "ab")
        drawn.append(likeness(one, other)[0])
    off = found.null_overlap_EE[~np.eye(3, dtype=bool)]
    assert np.quantile(drawn, 0.001) <= off.mean() <= np.quantile(drawn, 0.999)
    other = measure_subspaces(EXPERTS, POOL, RANK, GROUPS, seed=1)
    assert not np.array_equal(found.null_overlap_EE, other.null_overlap_EE)


def test_a_rank_beyond_the_width_is_the_width() -> None:
    assert measure_subspaces(EXPERTS, POOL, 99, GROUPS, 0).rank == WIDTH
