"""Fisher sums against loops over tokens, and the logits' information against its Jacobian."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.fisher.accumulation import (
    GROUP_BYTES,
    PROJECTED_WIDTH,
    FisherAccumulator,
    exact_groups_fit,
)
from moegeo_cli.fisher.categorical import categorical_information
from moegeo_cli.scorings import all_scorings

CPU = torch.device("cpu")


def batches(seed: int = 0, width: int = 7) -> list[tuple[torch.Tensor, torch.Tensor, list]]:
    """Three batches of tokens whose groups come in runs: (derivatives, inputs, spans)."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for spans in ([(0, 0, 4), (2, 4, 9)], [(1, 0, 6)], [(2, 0, 3), (0, 3, 5), (1, 5, 8)]):
        count = spans[-1][2]
        found.append(
            (
                torch.randn(count, 4, generator=generator),
                torch.randn(count, width, generator=generator),
                spans,
            )
        )
    return found


@pytest.mark.parametrize("exact", [True, False])
def test_sums_are_those_of_a_loop_over_tokens(exact: bool) -> None:
    accumulator = FisherAccumulator(4, 7, 3, exact_groups=exact, device=CPU)
    expected = np.zeros((3, 4, 7))
    for delta, x, spans in batches():
        accumulator.add(delta.square(), x.square(), spans)
        for group, start, stop in spans:
            for t in range(start, stop):
                expected[group] += np.outer(delta[t].double() ** 2, x[t].double() ** 2)
    total, groups, trace = accumulator.totals()
    np.testing.assert_allclose(total, expected.sum(0), rtol=1e-5)
    np.testing.assert_allclose(trace, expected.sum(2), rtol=1e-5)
    if exact:
        np.testing.assert_allclose(groups, expected, rtol=1e-5)


def test_splitting_the_tokens_changes_nothing() -> None:
    """Batches, shards and ranks add up: float64 sums of the same float32 products."""
    one = FisherAccumulator(4, 7, 1, exact_groups=True, device=CPU)
    many = FisherAccumulator(4, 7, 1, exact_groups=True, device=CPU)
    delta, x, _ = batches()[0]
    one.add(delta.square(), x.square(), [(0, 0, 9)])
    for t in range(9):
        many.add(delta[t : t + 1].square(), x[t : t + 1].square(), [(0, 0, 1)])
    np.testing.assert_allclose(one.totals()[0], many.totals()[0], rtol=1e-6)


def test_a_projection_keeps_lengths_and_is_the_same_for_the_same_seed() -> None:
    width = 2_000

    def project(seed: int) -> np.ndarray:
        accumulator = FisherAccumulator(4, width, 3, exact_groups=False, device=CPU, seed=seed)
        for delta, x, spans in batches(width=width):
            accumulator.add(delta.square(), x.square(), spans)
        assert accumulator.totals()[1].shape == (3, 4, PROJECTED_WIDTH)
        return accumulator.totals()[1]

    np.testing.assert_array_equal(project(1), project(1))
    exact = FisherAccumulator(4, width, 3, exact_groups=True, device=CPU)
    for delta, x, spans in batches(width=width):
        exact.add(delta.square(), x.square(), spans)
    lengths = np.linalg.norm(exact.totals()[1], axis=2)
    ratios = np.array([np.linalg.norm(project(seed), axis=2) / lengths for seed in range(12)])
    assert abs(ratios.mean() - 1) < 0.03
    assert abs(ratios - 1).max() < 0.25


def test_small_squares_do_not_vanish() -> None:
    accumulator = FisherAccumulator(1, 1, 1, exact_groups=True, device=CPU)
    tiny = torch.full((1, 1), 1e-19).square()  # 1e-38, near float32's smallest
    for _ in range(1000):
        accumulator.add(tiny, torch.ones(1, 1), [(0, 0, 1)])
    assert accumulator.totals()[0][0, 0] == pytest.approx(1e-35, rel=1e-3)


def test_group_sums_are_kept_exactly_up_to_the_bound() -> None:
    fits = GROUP_BYTES // (8 * 2 * 32)
    assert exact_groups_fit([(1, fits)], 2, 32)
    assert not exact_groups_fit([(1, fits), (1, 1)], 2, 32)


@pytest.mark.parametrize("scoring", sorted(all_scorings()))
def test_information_is_the_mean_square_of_the_scores_derivative(scoring: str) -> None:
    """E over e ~ p of (∂ ln p_e / ∂ z_j)², with the derivatives by autograd in float64."""
    z = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    scores = {
        "softmax": torch.exp,
        "sigmoid": torch.sigmoid,
        "sqrt_softplus": lambda v: torch.nn.functional.softplus(v).sqrt(),
    }[scoring]

    def log_p(row: torch.Tensor) -> torch.Tensor:
        s = scores(row)
        return (s / s.sum()).log()

    expected = []
    for row in z:
        jacobian = torch.autograd.functional.jacobian(log_p, row)
        expected.append((log_p(row).exp()[:, None] * jacobian.square()).sum(0))
    got = categorical_information(z.float(), scoring)
    torch.testing.assert_close(got.double(), torch.stack(expected), rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("scoring", sorted(all_scorings()))
def test_information_of_extreme_logits_is_finite(scoring: str) -> None:
    z = torch.tensor([[-300.0, 0.0, 300.0], [-90.0, -90.0, -90.0], [80.0, 80.0, 80.0]])
    assert torch.isfinite(categorical_information(z, scoring)).all()


def test_an_unknown_scoring_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="entmax"):
        categorical_information(torch.zeros(1, 2), "entmax")
