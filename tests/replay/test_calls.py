"""Every router is called once for every token, and chooses the same experts twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.replay.calls import CallCount, Trial
from moegeo_cli.replay.plan import Plan
from moegeo_cli.replay.reading import RouterCall
from tests.traces import trace_of

PLAN = Plan((), np.zeros(1, dtype=int))
TOKENS = 6
ALL = np.ones(TOKENS, dtype=bool)


def call_of(logits_NE: torch.Tensor, top_k: int = 2) -> RouterCall:
    weights_NK, selected_NK = logits_NE.softmax(1).topk(top_k)
    return RouterCall(torch.zeros(len(logits_NE), 3), logits_NE, weights_NK, selected_NK)


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(20, 4, generator=torch.Generator().manual_seed(seed))


def test_a_router_may_be_called_once_a_batch() -> None:
    trace = trace_of(0, lengths=(TOKENS,))
    count = CallCount([trace], TOKENS)
    for _ in range(2):  # two batches
        count.begin()
        count.count(trace.router)
        assert count.called == 1
    with pytest.raises(UnsupportedArchitectureError, match="more than once") as error:
        count.count(trace.router)
    assert trace.router.path in error.value.message


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([[0, 1, 2], [3, 4, 5]], None),
        ([], "the router was not called"),
        ([[0, 1, 2, 3]], "not called for 2 of 6 tokens"),
        ([[0, 1, 2], [2, 3, 4, 5]], "more than once for 1 tokens"),
    ],
)
def test_a_token_without_its_call_is_a_problem_of_the_router(
    rows: list[list[int]], problem: str | None
) -> None:
    trace = trace_of(0, lengths=(TOKENS,))
    count = CallCount([trace], TOKENS)
    for batch in rows:
        count.measured(trace.router, np.array(batch))
    count.close([trace], ALL)
    assert (trace.problem is None) if problem is None else (problem in (trace.problem or ""))


def test_a_router_of_one_side_is_asked_for_its_own_tokens() -> None:
    trace = dataclasses.replace(trace_of(0, lengths=(TOKENS,)), rows=np.array([0, 1, 4]))
    count = CallCount([trace], TOKENS)
    count.measured(trace.router, np.array([0, 4]))
    replayed_T = np.array([True, False, True, True, True, True])  # row 1 is of another process
    count.close([trace], replayed_T)
    assert trace.problem is None
    count.close([trace], ALL)
    assert trace.problem == "the router was not called for 1 of 3 tokens"


def test_an_earlier_problem_stays() -> None:
    trace = dataclasses.replace(trace_of(0, lengths=(TOKENS,)), problem="hashed")
    CallCount([trace], TOKENS).close([trace], ALL)
    assert trace.problem == "hashed"


def twice(first: RouterCall, again: RouterCall) -> None:
    router = trace_of(0).router
    trial = Trial(None, PLAN)  # type: ignore[arg-type]
    trial.begin(again=False)
    trial.take(router, first)
    trial.begin(again=True)
    trial.take(router, again)


def test_the_same_call_and_a_tie_decided_otherwise_pass() -> None:
    z = logits()
    twice(call_of(z), call_of(z.clone()))
    tied = z.clone()
    tied[:, 1] = tied[:, 0] = 9.0
    one, other = call_of(tied, 1), call_of(tied, 1)
    turned = dataclasses.replace(other, selected_NK=1 - one.selected_NK)
    assert not (turned.selected_NK == one.selected_NK).any(), "every token goes to the other one"
    twice(one, turned)


def test_logits_that_move_and_choices_that_move_are_random_routing() -> None:
    z = logits()
    with pytest.raises(UnsupportedArchitectureError, match="routing is random") as error:
        twice(call_of(z), call_of(z + 0.1))
    assert "logits differ by" in (error.value.found or "")
    other = dataclasses.replace(call_of(z), selected_NK=(-z).topk(2).indices)
    with pytest.raises(UnsupportedArchitectureError) as error:
        twice(call_of(z), other)
    assert "other experts at" in (error.value.found or "")
    broken = z.clone()
    broken[0, 0] = torch.nan
    with pytest.raises(UnsupportedArchitectureError) as error:
        twice(call_of(z), call_of(broken))
    assert "finite in one of two runs" in (error.value.found or "")


def test_a_second_call_in_one_run_and_one_that_was_missing_are_refused() -> None:
    router, call = trace_of(0).router, call_of(logits())
    trial = Trial(None, PLAN)  # type: ignore[arg-type]
    trial.begin(again=False)
    trial.take(router, call)
    with pytest.raises(UnsupportedArchitectureError, match="more than once"):
        trial.take(router, call)
    trial.begin(again=False)
    trial.begin(again=True)
    with pytest.raises(UnsupportedArchitectureError) as error:
        trial.take(router, call)
    assert "not called the first time" in (error.value.found or "")
