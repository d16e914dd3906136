"""The loss's gradient at a router's logits, on a layer that is small enough for loops.

Legend: N tokens, D width, E experts, K experts chosen per token.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.gradients import LossGradients
from moegeo_cli.replay.plan import BatchRows, Plan, RouterTrace, make_traces
from moegeo_cli.replay.reading import RouterCall
from tests.traces import router_of

LENGTHS, GROUPS_S = np.array([4, 3, 5]), np.array([0, 1, 0])
N, D, E, K = 12, 3, 4, 2
UNITS = ("position", "sequence", "loss_token")
FISHERS = tuple(("empirical", unit) for unit in UNITS)


def layer(
    *, dense: bool = False, top_k: int = K, observed: bool = True, **plan: Any
) -> tuple[Plan, RouterTrace, RouterCall, torch.Tensor]:
    """A router whose tokens' losses are squares of a mix of what its experts give.

    With `dense` the weights are a softmax over all experts, else over those chosen.
    """
    generator = torch.Generator().manual_seed(4)
    router = router_of(torch.randn(E, D, generator=generator).numpy(), top_k=top_k)
    known = Plan(FISHERS, GROUPS_S, **plan)
    [trace] = make_traces([router], known, N, 2)
    x_ND, given_NE = torch.randn(N, D, generator=generator), torch.randn(N, E, generator=generator)
    logits_NE = x_ND @ router.weight_ED.detach().T
    logits_NE.requires_grad_(True)
    selected_NK = logits_NE.topk(top_k, dim=1).indices
    own_NK = logits_NE.gather(1, selected_NK)
    weights_NK = logits_NE.softmax(1).gather(1, selected_NK) if dense else own_NK.softmax(1)
    losses = (weights_NK * given_NE.gather(1, selected_NK)).sum(1).square()
    call = RouterCall(x_ND, logits_NE, weights_NK, selected_NK, observed=observed)
    trace.observed = observed
    return known, trace, call, losses


def rows() -> BatchRows:
    return BatchRows.of(None, np.arange(3), LENGTHS, GROUPS_S)


def slow(call: RouterCall, losses: torch.Tensor) -> dict[str, np.ndarray]:
    """Each unit's sum, one loss at a time: losses of other tokens do not reach a token's logits."""
    each = [
        torch.autograd.grad(loss, call.logits_NE, retain_graph=True)[0][n]
        for n, loss in enumerate(losses)
    ]
    outer = [torch.outer(delta, call.x_ND[n]).double() for n, delta in enumerate(each)]
    squares = sum(o**2 for o in outer)
    starts = np.cumsum([0, *LENGTHS])
    whole = sum(sum(outer[a:b]) ** 2 for a, b in itertools.pairwise(starts))
    return {"position": squares.numpy(), "loss_token": squares.numpy(), "sequence": whole.numpy()}


@pytest.mark.parametrize("dense", [False, True])
def test_sums_are_those_of_one_loss_at_a_time(dense: bool) -> None:
    plan, trace, call, losses = layer(dense=dense)
    expected = slow(call, losses)
    gradients = LossGradients(plan)
    gradients.backward(losses, rows(), [(trace, call)])
    assert gradients.unselected == ("dense" if dense else "zero"), "found out"
    for unit in UNITS:
        total, groups, _ = trace.fishers["empirical", unit].totals()
        np.testing.assert_allclose(total, expected[unit], rtol=1e-4)
        np.testing.assert_allclose(groups.sum(0), total)
        assert groups[1].any()


def test_padding_is_left_out() -> None:
    plan, trace, call, _ = layer(unselected="zero")
    flat = torch.tensor([n for n in range(15) if n not in (4, 8, 9)])  # three rows of five places

    def spread(t: torch.Tensor) -> torch.Tensor:
        """The same rows with sevens between them."""
        return torch.full((15, *t.shape[1:]), 7, dtype=t.dtype).index_copy(0, flat, t)

    logits_NE = spread(call.logits_NE.detach()).requires_grad_(True)
    selected_NK = spread(call.selected_NK).clamp_max(E - 1)
    weights_NK = logits_NE.gather(1, selected_NK).softmax(1)
    given = spread(torch.randn(N, E, generator=torch.Generator().manual_seed(1)))
    losses = (weights_NK * given.gather(1, selected_NK)).sum(1).square()
    moved = RouterCall(spread(call.x_ND), logits_NE, weights_NK, selected_NK)
    rows = BatchRows.of(flat, np.arange(3), LENGTHS, GROUPS_S)
    LossGradients(plan).backward(losses, rows, [(trace, moved)])
    found = trace.fishers["empirical", "position"].totals()[0]
    delta_NE = torch.autograd.grad(losses.sum(), logits_NE)[0][flat]
    np.testing.assert_allclose(found, (delta_NE**2).T @ (call.x_ND**2), rtol=1e-4)


def test_a_config_that_says_zero_is_refused_where_others_carry_gradient() -> None:
    plan, trace, call, losses = layer(dense=True, unselected="zero")
    with pytest.raises(UnsupportedArchitectureError, match="gives gradient to experts") as error:
        LossGradients(plan).backward(losses, rows(), [(trace, call)])
    assert trace.router.path in error.value.message


def test_one_expert_divided_by_its_own_weight_has_no_gradient() -> None:
    plan, trace, call, losses = layer(top_k=1, renormalised=True)
    LossGradients(plan).backward(losses, rows(), [(trace, call)])
    assert not trace.fishers["empirical", "position"].totals()[0].any()


def test_a_computed_choice_is_confirmed_or_refused_by_the_gradient() -> None:
    plan, trace, call, losses = layer(observed=False)
    LossGradients(plan).backward(losses, rows(), [(trace, call)])
    assert trace.confirmed
    plan, trace, call, losses = layer(observed=False)
    other = RouterCall(
        call.x_ND, call.logits_NE, call.weights_NK, (-call.logits_NE).topk(K).indices, False
    )
    with pytest.raises(UnsupportedArchitectureError, match="does not choose the top 2"):
        LossGradients(plan).backward(losses, rows(), [(trace, other)])


def test_a_router_with_a_problem_and_one_that_no_loss_reaches_add_nothing() -> None:
    plan, trace, call, losses = layer()
    trace.problem = "not called"
    LossGradients(plan).backward(losses, rows(), [(trace, call)])
    trace.problem = None
    apart = RouterCall(call.x_ND, call.logits_NE.detach(), call.weights_NK, call.selected_NK)
    LossGradients(plan).backward(losses, rows(), [(trace, apart)])
    assert not trace.fishers["empirical", "position"].totals()[0].any()
