"""Exact facts about a training: frozen routers, no gradient, unused biases, copied experts."""

from __future__ import annotations

from typing import Any

import pytest

from moegeo_cli.records import Metric
from moegeo_cli.verdict import judge
from tests.verdict.conftest import checkpoint, find, layer, run_of


def move(before: int, after: int, *equal: tuple[bool, bool]) -> dict[str, Any]:
    rows = [
        {"layer": i, "router": f"model.layers.{i}.mlp.gate", "metrics": {},
         "weights_equal": weights, "logits_equal": logits, "bias_equal": None}
        for i, (weights, logits) in enumerate(equal)
    ]  # fmt: skip
    return {"from_step": before, "to_step": after, "from_path": f"checkpoint-{before}",
            "to_path": f"checkpoint-{after}", "geodesic_steps": [], "metrics": {},
            "layers": rows}  # fmt: skip


STEPS = (checkpoint(0), checkpoint(100), checkpoint(200))


def test_a_frozen_router_is_one_whose_inputs_move_alone() -> None:
    frozen, moving, copied = (True, False), (False, False), (True, True)
    run = run_of(*STEPS, dynamics=[move(0, 100, frozen, moving), move(100, 200, frozen, moving)])
    found = find(run, "router-frozen")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (0,))
    assert "since step 0" in found.message
    every = run_of(*STEPS, dynamics=[move(0, 100, moving, moving), move(100, 200, frozen, frozen)])
    assert (
        "every router is equal bit for bit since step 100" in find(every, "router-frozen").message
    )  # type: ignore[union-attr]
    same = run_of(*STEPS, dynamics=[move(0, 100, moving, moving), move(100, 200, copied, copied)])
    assert find(same, "router-frozen") is None, "another copy of one checkpoint"
    assert find(run_of(*STEPS), "router-frozen") is None


def test_no_checkpoint_is_frozen_by_its_future() -> None:
    frozen = (True, False)
    run = run_of(*STEPS, dynamics=[move(0, 100, (False, False)), move(100, 200, frozen)])
    at_100 = judge(run).checkpoints[1].verdict
    assert at_100 is not None
    assert all(f.name != "router-frozen" for f in at_100.findings)


def test_a_router_without_gradient_has_fishers_of_zero() -> None:
    alone = layer(0, top_k=1, fisher_trace=(0.0, 0.0, None))
    found = find(
        run_of(checkpoint(100, alone, layer(1, fisher_trace=(0.1, 0.2)))), "router-no-gradient"
    )
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (0,))
    assert "divided by itself" in found.message
    detached = layer(0, top_k=2, fisher_trace=(0.0, 0.0))
    other = find(run_of(checkpoint(100, detached)), "router-no-gradient")
    assert other is not None
    assert "detached" in other.message
    live = layer(0, top_k=1, fisher_trace=(0.0, 1e-12))
    assert find(run_of(checkpoint(100, live)), "router-no-gradient") is None
    unknown = layer(0, top_k=1, fisher_trace=(None, None))
    assert find(run_of(checkpoint(100, unknown)), "router-no-gradient") is None


def test_a_selection_bias_that_is_constant_after_the_start_is_unused() -> None:
    equal = layer(0, bias_spread=0.0)
    assert find(run_of(checkpoint(0, equal)), "bias-unused") is None
    found = find(run_of(checkpoint(100, equal, layer(1, bias_spread=0.1))), "bias-unused")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (0,))
    assert find(run_of(checkpoint(100, layer(1, bias_spread=0.1))), "bias-unused") is None


def test_equal_experts_are_an_upcycled_start_or_a_fault() -> None:
    copied = layer(0, experts_identical=((0, 4), (1, 5)))
    start = find(run_of(checkpoint(0, copied)), "experts-identical")
    assert start is not None
    assert start.severity == "info"
    later = find(run_of(checkpoint(0), checkpoint(100, copied)), "experts-identical")
    assert later is not None
    assert later.severity == "watch"
    assert "layer 0: 0=4, 1=5" in later.message
    assert (
        find(run_of(checkpoint(100, layer(0, experts_identical=()))), "experts-identical") is None
    )


TRAINED = {"trainer.max_steps": 300}


@pytest.mark.parametrize(
    ("training", "framework", "log", "severity"),
    [
        ({"router_aux_loss_coef": 0.01, **TRAINED}, "transformers", (), "watch"),
        ({"router_aux_loss_coef": 0.01}, "transformers", ({"step": 1, "loss": 2.0},), "watch"),
        ({"router_aux_loss_coef": 0.01}, None, (), "info"),
        ({"router_aux_loss_coef": 0.01, "output_router_logits": True}, "transformers", (), None),
        ({"router_aux_loss_coef": 0.01}, "trl", ({"step": 1, "aux_loss": 0.2},), None),
        ({"router_aux_loss_coef": 0.0, **TRAINED}, "transformers", (), None),
        ({"router_aux_loss_coef": 0.01}, "megatron", (), None),
        ({"aux_loss_coef": 0.01}, "nanotron", (), "watch"),
        ({}, "transformers", (), None),
    ],
)
def test_balancing_that_never_happens(
    training: dict[str, Any], framework: str | None, log: tuple[Any, ...], severity: str | None
) -> None:
    run = run_of(training=training, framework=framework, log=list(log))
    found = find(run, "balancing-inactive")
    assert (found.severity if found else None) == severity


def response(before: int, *by_layer: float | None, experts: int = 16) -> dict[str, Any]:
    """A move with a bias response in each layer."""
    found = move(before, before + 100, *[(False, False)] * len(by_layer))
    for row, value in zip(found["layers"], by_layer, strict=True):
        row["metrics"] = {"bias_response": Metric(value, n=experts)}
    return found


def test_a_bias_that_goes_with_the_load_has_the_wrong_sign() -> None:
    wrong = [response(0, -0.9, -0.9), response(100, 0.8, 0.7)]
    found = find(run_of(*STEPS, dynamics=wrong), "bias-wrong-sign")
    assert found is not None
    assert (found.severity, found.layers) == ("watch", (0, 1))
    assert "+0.75" in found.message


@pytest.mark.parametrize(
    "values",
    [(-0.8, -0.7), (0.2, -0.1), (0.5, None), (None, None)],
    ids=["balances", "unrelated", "one layer alone", "not known"],
)
def test_a_bias_that_goes_against_the_load_or_nowhere_is_none(
    values: tuple[float | None, ...],
) -> None:
    moves = [response(0, 0.9, 0.9), response(100, *values)]
    assert find(run_of(*STEPS, dynamics=moves), "bias-wrong-sign") is None
