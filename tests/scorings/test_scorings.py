"""Scores, their slopes and the Fisher of the routing distribution against autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.fisher.categorical import categorical_information
from moegeo_cli.geometry.scoring import probabilities
from moegeo_cli.scorings import all_scorings, find_scoring

SCORES = {
    "softmax": torch.exp,
    "sigmoid": torch.sigmoid,
    "sqrt_softplus": lambda z: F.softplus(z).sqrt(),
}


@pytest.mark.parametrize("name", all_scorings())
def test_probabilities_and_slopes_agree_with_torch(name: str) -> None:
    z = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 3
    z.requires_grad_(True)
    scores = SCORES[name](z)
    expected = (scores / scores.sum(-1, keepdim=True)).detach().numpy()
    np.testing.assert_allclose(probabilities(z.detach().numpy(), name), expected, rtol=1e-12)
    (slope,) = torch.autograd.grad(scores.log().sum(), z)
    ours = find_scoring(name).log_slope(z.detach().numpy())
    np.testing.assert_allclose(ours, slope.numpy(), rtol=1e-10)


@pytest.mark.parametrize("name", all_scorings())
def test_tensors_are_scored_as_arrays_are(name: str) -> None:
    z = torch.linspace(-50.0, 50.0, 202, dtype=torch.float64).reshape(2, 101)
    found = find_scoring(name)
    logs, slope = found.tensor_logs(z)
    np.testing.assert_allclose(logs, found.log_score(z.numpy()), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(
        slope.expand_as(z), found.log_slope(z.numpy()), rtol=1e-12, atol=1e-300
    )
    scores = found.tensor_score(z)
    np.testing.assert_allclose(
        scores / scores.sum(-1, keepdim=True), probabilities(z.numpy(), name), rtol=1e-12
    )
    if math.isfinite(found.unit_logit):
        assert found.score(np.array([found.unit_logit])) == pytest.approx(1.0)


@pytest.mark.parametrize("name", all_scorings())
def test_categorical_information_is_the_expected_squared_score(name: str) -> None:
    """E over a sampled expert of (d ln p_sampled / dz_e)², by autograd, expert by expert."""
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(7, 5, dtype=torch.float64, generator=generator) * 2
    expected = torch.zeros_like(z)
    for row in range(len(z)):
        one = z[row].clone().requires_grad_(True)
        p = SCORES[name](one) / SCORES[name](one).sum()
        for expert in range(z.shape[1]):
            (gradient,) = torch.autograd.grad(p[expert].log(), one, retain_graph=True)
            expected[row] += p[expert].detach() * gradient**2
    found = categorical_information(z.float(), name)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", all_scorings())
@pytest.mark.parametrize("size", [-400.0, -60.0, 60.0, 400.0])
def test_extreme_logits_stay_finite(name: str, size: float) -> None:
    z = np.array([[size, size - 1.0, size + 0.5]])
    p = probabilities(z, name)
    assert np.isfinite(p).all()
    assert p.sum() == pytest.approx(1.0)
    assert torch.isfinite(categorical_information(torch.tensor(z).float(), name)).all()


def test_a_scoring_that_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="softsign"):
        find_scoring("softsign")
