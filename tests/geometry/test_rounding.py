"""How coarsely a bias is stored, and what that costs, against loops and exact cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moegeo_cli.geometry.rounding import changed_choices, coarseness
from moegeo_cli.geometry.selection import SelectionRule


def test_steps_are_the_distances_of_neighbours() -> None:
    values = torch.tensor([6.9, -0.3, 0.01, 130.0, 0.0]).bfloat16()
    found = coarseness(values.float().numpy())
    assert found is not None
    assert (found.precision, found.distinct) == ("bfloat16", 5)
    for value, step in zip(values, found.step_E, strict=True):
        if value == 0:
            assert step == 0.0
            continue
        above = torch.nextafter(value.abs(), torch.tensor(torch.inf, dtype=torch.bfloat16))
        assert step == float(above) - abs(float(value))
    half = torch.tensor([0.3, 0.7]).half().float().numpy()
    assert coarseness(half).precision == "float16"  # type: ignore[union-attr]
    assert coarseness(np.array([0.3, 0.7], np.float32)) is None
    assert coarseness(np.full(4, 0.5, np.float32)) is None


def test_only_tokens_at_the_boundary_change() -> None:
    bias_E = torch.tensor([6.9, 6.9, 6.9, 6.9]).bfloat16().float().numpy()
    rule = SelectionRule(1, "sigmoid", bias_E.astype(float))
    far_TE = np.tile([3.0, 0.0, 0.0, 0.0], (50, 1)) + bias_E
    near_TE = np.tile([0.001, 0.0, 0.0, 0.0], (50, 1)) + bias_E
    step_E = np.full(4, 2.0**-5)
    generator = np.random.default_rng(0)
    assert changed_choices(rule, far_TE, step_E, generator) == 0.0
    # Four experts that are as good as equal: another one wins three times in four.
    shares = [changed_choices(rule, near_TE, step_E, generator) for _ in range(200)]
    assert np.mean(shares) == pytest.approx(0.74, abs=0.05)
    assert changed_choices(rule, near_TE, np.zeros(4), generator) == 0.0
