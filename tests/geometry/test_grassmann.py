"""Subspaces with known angles, components against a plain eigendecomposition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from moegeo_cli.geometry.grassmann import (
    enough_tokens,
    geodesic_distance,
    leave_groups_out,
    overlap,
    pair_distances,
    pair_distances_left_out,
    principal_angles,
    weighted_pca,
)


def known_pair(angles: list[float], width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two subspaces at given angles, in a random basis of the whole and of each."""
    generator = np.random.default_rng(seed)
    rank = len(angles)
    frame = np.linalg.qr(generator.standard_normal((width, 2 * rank)))[0]
    one = frame[:, :rank]
    other = one * np.cos(angles) + frame[:, rank:] * np.sin(angles)
    turns = [np.linalg.qr(generator.standard_normal((rank, rank)))[0] for _ in range(2)]
    return one @ turns[0], other @ turns[1]


@pytest.mark.parametrize(
    "angles",
    [
        [0.0, 0.0, 0.0],
        [1e-9, 1e-7, 1e-4],
        [0.1, 0.7, 1.2],
        [math.pi / 2 - 1e-9, math.pi / 2, 0.3],
        [math.pi / 2] * 4,
    ],
)
def test_known_angles_come_back(angles: list[float]) -> None:
    one, other = known_pair(angles, 17)
    found = principal_angles(one, other)
    np.testing.assert_allclose(found, sorted(angles), atol=1e-12, rtol=1e-6)
    size = math.sqrt(sum(a * a for a in angles))
    distance = size / (math.sqrt(len(angles)) * math.pi / 2)
    assert geodesic_distance(found) == pytest.approx(distance, abs=1e-12)
    assert overlap(found) == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-12)
    distances, overlaps = pair_distances([one, other])  # in narrower coordinates
    assert distances[0, 1] == pytest.approx(distance, rel=1e-6, abs=1e-12)
    assert overlaps[1, 0] == pytest.approx(overlap(found), abs=1e-12)


@pytest.mark.parametrize("width", [12, 60])
def test_random_angles_agree_with_scipy_and_pairs_with_single_ones(width: int) -> None:
    """All of them together span the whole space, and less than it."""
    generator = np.random.default_rng(1)
    bases = [np.linalg.qr(generator.standard_normal((width, 3)))[0] for _ in range(4)]
    distance, overlaps = pair_distances([*bases, None])
    for a, one in enumerate(bases):
        for b, other in enumerate(bases):
            angles = np.sort(subspace_angles(one, other))
            assert distance[a, b] == pytest.approx(float(geodesic_distance(angles)), abs=1e-7)
            assert overlaps[a, b] == pytest.approx(float(overlap(angles)), abs=1e-9)
    assert np.isnan(distance[4]).all()
    assert np.isnan(overlaps[:, 4]).all()


@pytest.mark.parametrize(("count", "width"), [(50, 6), (9, 40)])
def test_weighted_components_are_those_of_repeated_rows(count: int, width: int) -> None:
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((count, width)) * np.linspace(3, 0.1, width)
    weights = generator.integers(0, 4, count)
    weights[:2] = 1
    found = weighted_pca(rows, weights.astype(float))
    assert found is not None
    repeated = np.repeat(rows, weights, axis=0)
    centred = repeated - repeated.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(repeated))
    kept = len(found.variances)
    np.testing.assert_allclose(found.variances, values[::-1][:kept], rtol=1e-8)
    shares = found.variances / found.variances.sum()
    assert found.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    for k in range(3):
        assert abs(vectors[:, -1 - k] @ found.basis_DQ[:, k]) == pytest.approx(1, abs=1e-8)
    np.testing.assert_allclose(found.basis_DQ.T @ found.basis_DQ, np.eye(kept), atol=1e-10)


def test_spectra_of_known_shape() -> None:
    generator = np.random.default_rng(3)
    frame = np.linalg.qr(generator.standard_normal((2000, 5)))[0] * math.sqrt(2000)
    frame -= frame.mean(0)
    flat = weighted_pca(frame, np.ones(2000))
    assert flat is not None
    assert flat.effective_rank == pytest.approx(5, rel=0.01)
    assert flat.rank_of(0.5) == 3
    line = weighted_pca(np.outer(np.arange(9.0), [1, 2, 3]), np.ones(9))
    assert line is not None
    assert line.effective_rank == pytest.approx(1)
    assert weighted_pca(np.ones((9, 3)), np.ones(9)) is None
    assert weighted_pca(generator.standard_normal((9, 3)), np.eye(9)[0]) is None


def test_leaving_out_a_group_is_what_is_left_without_it() -> None:
    generator = np.random.default_rng(4)
    scale = np.array([4, 3, 2, 0.3, 0.2, 0.1])
    groups = np.repeat(np.arange(8), 40)
    bases, parts, rows = [], [], []
    for _ in range(2):
        own = generator.standard_normal((320, 6)) * scale
        own += generator.standard_normal((8, 6))[groups]
        weight = generator.random(320)
        found = weighted_pca(own, weight)
        assert found is not None
        parts.append(leave_groups_out(found, own, weight, groups, 8, 2))
        rows.append((own, weight))
    distance, overlaps = pair_distances_left_out(parts, 2, 8)
    for g in range(8):
        bases = []
        for own, weight in rows:
            left = weighted_pca(own[groups != g], weight[groups != g])
            assert left is not None
            bases.append(left.basis_DQ[:, :2])
        expected = pair_distances(bases)
        assert distance[g, 0, 1] == pytest.approx(expected[0][0, 1], abs=1e-6)
        assert overlaps[g, 0, 1] == pytest.approx(expected[1][0, 1], abs=1e-6)


def test_four_tokens_a_dimension_are_needed() -> None:
    assert enough_tokens(32, 8) is None
    assert enough_tokens(31, 8) == "31 tokens, fewer than 32 (4 a dimension)"
