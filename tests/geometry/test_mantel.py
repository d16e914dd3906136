"""Two models' tables of similarities: themselves renumbered, strangers, and even p-values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from moegeo_cli.geometry.mantel import MOST_EACH, mantel, sample_rows_evenly
from moegeo_cli.geometry.resample import group_sequences, make_draws

S, EACH = 24, 5
GROUPS = group_sequences(S)
DRAWS = make_draws(GROUPS)
OF = np.repeat(np.arange(S), EACH)


def roots(seed: int, experts: int, x: np.ndarray | None = None) -> np.ndarray:
    """Roots of routing distributions; tokens of one sequence resemble each other."""
    generator = np.random.default_rng(seed)
    if x is None:
        x = generator.normal(size=(len(OF), 12)) + 1.5 * generator.normal(size=(S, 12))[OF]
    logits = x @ generator.normal(size=(x.shape[1], experts))
    p = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(np.sqrt(p / p.sum(1, keepdims=True)))


def test_a_model_against_itself_with_other_numbers_is_one() -> None:
    own = roots(0, 6)
    renumbered = own[:, np.random.default_rng(1).permutation(6)]
    pearson, spearman, null, p = mantel(own, renumbered, GROUPS, DRAWS, 0)
    assert pearson.value == pytest.approx(1.0, abs=1e-9)
    assert spearman.value == pytest.approx(1.0, abs=1e-9)
    assert p == pytest.approx(1 / 500)
    assert null is not None
    assert abs(null) < 0.05


def test_the_statistic_is_of_pairs_of_two_sequences() -> None:
    one, other = roots(0, 6), roots(1, 9)
    pearson, spearman, _, _ = mantel(one, other, GROUPS, DRAWS, 0)
    tables = [[], []]
    for i in range(len(OF)):
        for j in range(i):
            if OF[i] != OF[j]:
                for table, rows in zip(tables, (one, other), strict=True):
                    table.append(float(rows[i] @ rows[j]))
    assert pearson.value == pytest.approx(pearsonr(*tables).statistic)
    assert spearman.value == pytest.approx(spearmanr(*tables).statistic)


def test_what_both_take_from_the_tokens_is_seen_through_other_experts() -> None:
    x = np.random.default_rng(2).normal(size=(len(OF), 12))
    pearson, _, null, p = mantel(roots(3, 6, x), roots(4, 16, x), GROUPS, DRAWS, 0)
    assert (pearson.value or 0) > 0.08
    assert p == pytest.approx(1 / 500)
    assert null is not None
    assert abs(null) < 0.02


def test_strangers_have_even_p_values_though_tokens_of_a_sequence_resemble_each_other() -> None:
    found = [mantel(roots(2 * i, 6), roots(2 * i + 1, 6), GROUPS, DRAWS, i)[3] for i in range(60)]
    counts, _ = np.histogram([p for p in found if p is not None], bins=4, range=(0, 1))
    assert counts.sum() == 60
    assert ((counts - 15) ** 2 / 15).sum() < 16.3  # the 0.1% point of χ² with 3 degrees
    assert np.mean(np.array(found) <= 0.05) < 0.17


def test_rows_are_as_many_of_each_sequence() -> None:
    sizes = np.random.default_rng(5).integers(3, 60, 30)
    sequence = np.repeat(np.arange(30), sizes)
    rows = sample_rows_evenly(sequence, 0)
    assert rows.shape == (int((sizes >= MOST_EACH).sum()), MOST_EACH)
    for own in rows:
        assert len(set(own)) == MOST_EACH
        assert len(set(sequence[own])) == 1
    many = sample_rows_evenly(np.repeat(np.arange(2000), 3), 0)
    assert many.shape == (512, 1)
    np.testing.assert_array_equal(many, sample_rows_evenly(np.repeat(np.arange(2000), 3), 0))


def test_too_few_sequences_and_tables_that_do_not_vary_say_so() -> None:
    pearson, _, null, p = mantel(roots(0, 6)[:20], roots(1, 6)[:20], GROUPS[:4], DRAWS, 0)
    assert pearson.reason == "4 sequences, fewer than 8"
    assert (null, p) == (None, None)
    flat = np.full((len(OF), 4), 0.5)
    assert mantel(flat, roots(1, 6), GROUPS, DRAWS, 0)[0].value is None
