"""Experts whose weights were lost, in memory: one fault each, and what is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moegeo_cli.models.damage import Damage, find_damage
from moegeo_cli.routers.finding import Router, find_routers

EXPERTS = 5


class Stack(nn.Module):
    """All experts in two stacked parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, 8, 6))
        self.down = nn.Parameter(torch.randn(EXPERTS, 6, 8))


def router_of(*, stacked: bool) -> tuple[Router, list[list[torch.Tensor]]]:
    """A router, and each expert's matrices as views that can be written to."""
    torch.manual_seed(0)
    block = nn.Module()
    block.gate = nn.Linear(6, EXPERTS, bias=False)
    if stacked:
        block.experts = Stack()
        parts = [[block.experts.up.data[e], block.experts.down.data[e]] for e in range(EXPERTS)]
    else:
        block.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False))
            for _ in range(EXPERTS)
        )
        parts = [[layer.weight.data for layer in expert] for expert in block.experts]
    [router] = find_routers(nn.ModuleDict({"layers": nn.ModuleList([block])}))
    return router, parts


@pytest.mark.parametrize("stacked", [False, True])
def test_whole_experts_have_nothing(stacked: bool) -> None:
    router, _ = router_of(stacked=stacked)
    assert find_damage(router) == Damage((), ())


@pytest.mark.parametrize("stacked", [False, True])
def test_each_fault_is_named_with_its_experts(stacked: bool) -> None:
    router, parts = router_of(stacked=stacked)
    parts[0][1][2, 3] = float("nan")
    parts[1][0][:] = 0.0
    parts[2][1][4] = 0.0  # one row alone
    for one, other in zip(parts[4], parts[3], strict=True):
        one.copy_(other)
    assert find_damage(router) == Damage((0,), (1, 2), ((3, 4),))


@pytest.mark.parametrize("stacked", [False, True])
def test_rows_of_zeros_in_every_expert_are_padding(stacked: bool) -> None:
    router, parts = router_of(stacked=stacked)
    for own in parts:
        own[0][6:] = 0.0
    assert find_damage(router) == Damage((), ())
    for own in parts:
        own[0][:] = 0.0
    found = find_damage(router)
    assert found is not None
    assert found.zero == tuple(range(EXPERTS)), "a matrix that is zero as a whole is named"


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_that_share_one_matrix_alone_are_no_twins(stacked: bool) -> None:
    router, parts = router_of(stacked=stacked)
    parts[1][0].copy_(parts[0][0])
    assert find_damage(router) == Damage((), ())


def test_lost_experts_are_not_called_equal() -> None:
    router, parts = router_of(stacked=False)
    for expert in (1, 2):
        for own in parts[expert]:
            own[:] = 0.0
    assert find_damage(router) == Damage((), (1, 2))


def test_weights_that_are_not_in_memory_are_not_judged() -> None:
    router, _ = router_of(stacked=False)
    router.parent.to("meta")
    assert find_damage(router) is None
