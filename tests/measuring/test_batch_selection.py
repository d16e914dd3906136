"""Selection checked on the device of the logits, against the reference token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moegeo_cli.fisher.buffers import Buffers
from moegeo_cli.geometry.selection import SelectionRule, check_selection
from moegeo_cli.measuring.batch_selection import check_batch

TOKENS, EXPERTS, SLOTS = 600, 12, 3
GROUPS = [None, (4, 2), (3, 1), (6, 4), (12, 5), (2, 2)]
STEPS = [0.0, 2.0**-7, 0.25]  # logits apart, equal after rounding now and then, and often equal


def rule_of(
    scoring: str, bias_on: str | None, groups: tuple[int, int] | None, score: str
) -> SelectionRule:
    bias_E = np.random.default_rng(1).normal(size=EXPERTS) * 0.2 if bias_on else None
    return SelectionRule(SLOTS, scoring, bias_E, groups, score, bias_on or "scores")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("bias_on", [None, "scores", "logits"])
@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrt_softplus"])
def test_every_token_is_decided_as_the_reference_does(
    scoring: str, bias_on: str | None, groups: tuple[int, int] | None, step: float
) -> None:
    generator = np.random.default_rng(7)
    logits_NE = generator.normal(size=(TOKENS, EXPERTS)).astype(np.float32) + np.float32(2.0)
    if step:
        logits_NE = (np.round(logits_NE / step) * step).astype(np.float32)
    for group_score in ("top2", "max") if groups else ("top2",):
        rule = rule_of(scoring, bias_on, groups, group_score)
        chosen_NE = rule.select(rule.score(logits_NE))
        selected_NK = np.argsort(~chosen_NE, axis=1, kind="stable")[:, :SLOTS]
        selected_NK[::50] = generator.integers(0, EXPERTS, selected_NK[::50].shape)  # wrong ones
        expected = check_selection(rule, logits_NE, selected_NK)
        z = torch.from_numpy(logits_NE)
        found = check_batch(
            rule, z, z.double().mean(1).float(), torch.from_numpy(selected_NK), Buffers()
        )
        np.testing.assert_array_equal(found.near_tie_N, expected.near_tie_N)
        np.testing.assert_array_equal(found.contradicted_N, expected.contradicted_N)
        assert (found.near_tie_centred_N is None) == (expected.near_tie_centred_N is None)
        if found.near_tie_centred_N is not None:
            np.testing.assert_array_equal(found.near_tie_centred_N, expected.near_tie_centred_N)
        np.testing.assert_allclose(found.margin_N, expected.margin_N, rtol=1e-6, atol=1e-6)
