"""Merges and prunings in memory, against the same changes made to a copy by hand."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.commands.experts.candidates import rank_pairs, rank_singles, rank_singles_by
from moegeo_cli.commands.experts.verification import RANDOM_TRIALS, verify
from moegeo_cli.expert_functions.functions import Experts
from moegeo_cli.expert_functions.surgery import merge, silence
from moegeo_cli.geometry.resample import make_draws
from tests.commands.experts.recorded import layer_of
from tests.expert_functions.test_functions import build, open_block

SEQUENCE_T = np.repeat([0, 1, 2, 3], [5, 3, 8, 4])
COUNT_S = np.bincount(SEQUENCE_T)
DRAWS = make_draws(np.arange(4))


def opened() -> tuple[Experts, torch.Tensor]:
    """The experts of a tiny Mixtral, always the same, and what reaches them."""
    return open_block(build("mixtral"))


def loss_of(experts: Experts, x_ND: torch.Tensor) -> np.ndarray:
    """Of each sequence: the squares of all experts' outputs. A silent expert adds nothing."""
    total_T = sum(
        experts.block.call(e, x_ND).double().square().sum(1) for e in range(experts.block.experts)
    )
    return np.bincount(SEQUENCE_T, np.asarray(total_T))


@functools.cache
def verified(count: int = 2) -> Any:
    experts, x_ND = opened()
    state = [p.clone() for p in experts.block.module.parameters()]
    layers = [layer_of(0, count=experts.block.experts, experts=experts), layer_of(1)]
    found = verify(layers, lambda: loss_of(experts, x_ND), COUNT_S, DRAWS, count, 0)
    for kept, now in zip(state, experts.block.module.parameters(), strict=True):
        assert torch.equal(kept, now), "the weights are as they were"
    return found, layers


def change_of(found: Any, action: str, choice: str) -> Any:
    [trial] = [t for t in found.trials if (t.action, t.choice) == (action, choice)]
    return trial


def test_a_layer_that_cannot_be_changed_is_left_out_with_a_note() -> None:
    found, _ = verified()
    assert found.notes == ("1 layers left out: moegeo cannot change the weights of their experts",)
    assert all(name.startswith("layer 0") for t in found.trials for name in t.chosen
               if t.choice != "random")  # fmt: skip
    experts, x_ND = opened()
    assert found.loss.value == pytest.approx(loss_of(experts, x_ND).sum() / COUNT_S.sum())


@pytest.mark.parametrize("choice", ["ranking", "overlap", "weight cosine"])
def test_a_pruning_takes_away_what_the_experts_gave(choice: str) -> None:
    found, layers = verified()
    ranked = (rank_singles(layers[:1]) if choice == "ranking"
              else rank_singles_by(layers[:1], choice))  # fmt: skip
    pruned = [e for _, e in ranked[:2]]
    experts, x_ND = opened()
    lost = sum(float(experts.block.call(e, x_ND).double().square().sum()) for e in pruned)
    trial = change_of(found, "prune", choice)
    assert trial.chosen == tuple(f"layer 0: {e}" for e in pruned)
    assert trial.change.value == pytest.approx(-lost / COUNT_S.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("choice", "matrix"),
    [("ranking", "alignment"), ("overlap", "overlap"), ("weight cosine", "weight cosine")],
)
def test_a_merge_weighs_two_experts_by_their_mass(choice: str, matrix: str) -> None:
    found, layers = verified()
    pairs: list[tuple[int, int]] = []
    for _, a, b in rank_pairs(layers[:1], matrix):
        if len(pairs) < 2 and not {a, b} & {e for pair in pairs for e in pair}:
            pairs.append((a, b))
    experts, x_ND = opened()
    before = loss_of(experts, x_ND)
    for a, b in pairs:
        mass = layers[0].mass_E
        merge(experts, a, b, float(mass[a] / (mass[a] + mass[b])))
    expected = (loss_of(experts, x_ND) - before).sum() / COUNT_S.sum()
    trial = change_of(found, "merge", choice)
    assert trial.chosen == tuple(f"layer 0: {a}+{b}" for a, b in pairs)
    assert trial.change.value == pytest.approx(expected, rel=1e-4)
    assert trial.change.ci_low <= trial.change.value <= trial.change.ci_high


def test_random_choices_are_averaged() -> None:
    found, layers = verified()
    generator = np.random.default_rng(0)
    count = layers[0].record.experts
    for _ in range(RANDOM_TRIALS):  # the merges are drawn first
        generator.permutation(count * (count - 1) // 2)
    changes = []
    for _ in range(RANDOM_TRIALS):
        experts, x_ND = opened()
        before = loss_of(experts, x_ND)
        for e in generator.permutation(count)[:2]:
            silence(experts, int(e))
        changes.append((loss_of(experts, x_ND) - before).sum() / COUNT_S.sum())
    trial = change_of(found, "prune", "random")
    assert trial.chosen == ("5 draws of 2",)
    assert trial.change.value == pytest.approx(np.mean(changes), rel=1e-5)
    assert change_of(found, "merge", "random").chosen == ("5 draws of 2",)


def test_more_merges_than_there_are_experts_end_where_none_is_left() -> None:
    found, layers = verified(99)
    for choice in ("ranking", "overlap", "weight cosine"):
        merged = [name.split(": ")[1] for name in change_of(found, "merge", choice).chosen]
        members = [e for pair in merged for e in pair.split("+")]
        assert len(members) == len(set(members)) == layers[0].record.experts


def test_a_loss_that_is_not_finite_is_a_null_with_its_reason() -> None:
    experts, x_ND = opened()
    calls: list[int] = []

    def losses() -> np.ndarray:
        calls.append(1)
        return loss_of(experts, x_ND) * (np.inf if len(calls) > 1 else 1.0)

    layers = [layer_of(0, count=experts.block.experts, experts=experts)]
    found = verify(layers, losses, COUNT_S, DRAWS, 1, 0)
    assert {t.change.value for t in found.trials} == {None}
    assert all(t.change.reason for t in found.trials)
