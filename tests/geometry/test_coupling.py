"""Rows through projections, against loops; and what independent and coupled experts give."""

from __future__ import annotations

import numpy as np
import pytest

from moegeo_cli.geometry.coupling import own_row_share, squared_projected_norms


def test_reach_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    first_RD, rows_ED = rng.normal(size=(7, 5)), rng.normal(size=(4, 5))
    slow = [sum(float(w @ r) ** 2 for w in first_RD) for r in rows_ED]
    assert squared_projected_norms(first_RD, rows_ED) == pytest.approx(slow, rel=1e-5)


def test_independent_experts_have_their_own_row_as_often_as_any() -> None:
    rng = np.random.default_rng(1)
    shares = []
    for _ in range(60):
        rows_ED = rng.normal(size=(8, 24))
        largest = [
            int(squared_projected_norms(rng.normal(size=(16, 24)), rows_ED).argmax())
            for _ in range(8)
        ]
        shares.append(own_row_share(largest))
    assert abs(np.mean(shares) - 1 / 8) < 0.05


def test_coupled_experts_are_all_counted() -> None:
    rng = np.random.default_rng(2)
    rows_ED = rng.normal(size=(8, 24))
    largest = [
        int(squared_projected_norms(rng.normal(size=(16, 24)) + 3.0 * row, rows_ED).argmax())
        for row in rows_ED
    ]
    assert own_row_share(largest) == 1.0
    assert own_row_share([0, None, 1, None]) == 0.5
    assert own_row_share([None, None]) is None
