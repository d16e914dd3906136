"""One pass through a model of a few lines, against the same model called sequence by sequence."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from moegeo_cli.errors import ProbeError, ResourceError, UnsupportedArchitectureError
from moegeo_cli.replay.forward_pass import Pass
from moegeo_cli.replay.plan import Plan, Replay
from moegeo_cli.routers.finding import Router

VOCABULARY, WIDTH, EXPERTS, TOP_K, LAYERS = 16, 6, 4, 2, 2
LENGTHS = (3, 7, 5, 7)
EMPIRICAL = (("empirical", "position"),)


class Gate(nn.Module):
    """A router that returns its logits, its weights and its choice."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(EXPERTS, WIDTH))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = x.reshape(-1, WIDTH) @ self.weight.T
        weights, chosen = logits.softmax(-1).topk(TOP_K)
        return logits, weights, chosen


class Block(nn.Module):
    """A gate and its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.experts = nn.Parameter(torch.randn(EXPERTS, WIDTH, WIDTH) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        _, weights, chosen = self.gate(x)
        rows = x.reshape(-1, WIDTH)
        out = torch.einsum("nd,nkdo,nk->no", rows, self.experts[chosen], weights)
        return x + out.reshape(x.shape)


class Toy(nn.Module):
    """A token is mixed with the tokens before it; `disturb` is called in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.requires_grad_(False)
        self.ends = 0

    def disturb(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(self.disturb(x + x.cumsum(1) / 4))
        self.ends += 1
        return SimpleNamespace(logits=self.head(x))


def routers(model: Toy) -> list[Router]:
    return [
        Router(layer, f"blocks.{layer}.gate", block.gate, block.gate, block, EXPERTS, TOP_K,
               block.gate.weight, None, None)
        for layer, block in enumerate(model.blocks)
    ]  # fmt: skip


def sequences() -> list[np.ndarray]:
    generator = np.random.default_rng(1)
    return [generator.integers(0, VOCABULARY, n) for n in LENGTHS]


def plan_of(**changes: Any) -> Plan:
    return Plan(**{"fishers": EMPIRICAL, "groups_S": np.array([0, 1, 0, 1]), "unselected": "dense",
                   **changes})  # fmt: skip


def run(model: Toy, plan: Plan, size: int | None = 2, progress: Any = None) -> Replay:
    ids = sequences()
    return Pass(model, routers(model), ids, [None] * len(ids), plan, size, progress).run()


@pytest.mark.parametrize("size", [1, 3, None])
def test_a_pass_is_what_each_sequence_gives_alone(size: int | None) -> None:
    model = Toy()
    found = run(model, plan_of(), size)
    logits: list[list[torch.Tensor]] = [[] for _ in range(LAYERS)]
    losses = []
    for ids in sequences():
        tokens = torch.from_numpy(ids)[None]
        x = model.embed(tokens)
        for own, block in zip(logits, model.blocks, strict=True):
            x = x + x.cumsum(1) / 4
            own += [x[0] @ block.gate.weight.T]
            x = block(x)
        losses += [F.cross_entropy(model.head(x)[0, :-1], tokens[0, 1:], reduction="sum")]
    assert found.loss_S is not None
    np.testing.assert_allclose(found.loss_S, torch.stack(losses), rtol=1e-5)
    assert found.loss_tokens_S.tolist() == [n - 1 for n in LENGTHS]
    assert found.sequence_T.tolist() == np.repeat(range(len(LENGTHS)), LENGTHS).tolist()
    for trace, own in zip(found.traces, logits, strict=True):
        expected = torch.cat(own)
        assert trace.problem is None
        np.testing.assert_allclose(trace.logits_TE, expected, rtol=1e-4, atol=1e-5)
        weights, chosen = expected.softmax(1).topk(TOP_K)
        np.testing.assert_array_equal(trace.selected_TK, chosen)
        np.testing.assert_allclose(trace.weights_TK, weights, rtol=1e-4)


def test_the_model_is_left_as_it_was() -> None:
    model = Toy()
    before = [p.clone() for p in model.parameters()]
    run(model, plan_of())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_it_is_left_as_it_was_after_an_error_too() -> None:
    model = Toy()
    model.disturb = lambda x: 1 / 0  # type: ignore[assignment]
    with pytest.raises(
        UnsupportedArchitectureError, match="the forward pass of Toy fails in the model's own code"
    ):
        run(model, plan_of())
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_without_a_loss_a_batch_ends_at_its_last_router() -> None:
    model = Toy()
    assert run(model, plan_of(fishers=()), 1).loss_S is None
    assert model.ends == 2, "the trial of a small batch alone, which is replayed twice"
    run(model, plan_of(), 1)
    assert model.ends == 2 + 2 + len(LENGTHS)


def test_progress_ends_at_all_tokens() -> None:
    told: list[int] = []
    run(Toy(), plan_of(), 1, told.append)
    assert sorted(told) == sorted(LENGTHS)


def test_an_error_of_the_models_code_names_the_model_and_its_first_line() -> None:
    model = Toy()

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("no such head\nsecond line")

    model.disturb = fail  # type: ignore[method-assign]
    with pytest.raises(UnsupportedArchitectureError) as error:
        run(model, plan_of())
    assert error.value.message == "the forward pass of Toy fails in the model's own code"
    assert error.value.found == r"KeyError: 'no such head\nsecond line'"


def test_a_lack_of_memory_is_passed_on() -> None:
    model = Toy()

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    model.disturb = fail  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        run(model, plan_of())


def test_what_a_hook_raises_is_heard_even_if_the_model_catches_it() -> None:
    class Deaf(Toy):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            x = self.embed(input_ids)
            for block in self.blocks:
                try:
                    x = block(x[:, :-1])  # a position less than the batch has
                except Exception:
                    x = x[:, :-1]
            return SimpleNamespace(logits=self.head(x))

    with pytest.raises(ProbeError, match=r"the router blocks\.0\.gate sees") as error:
        run(Deaf(), plan_of())
    assert error.value.hint == "moegeo measures routers that see every token once"


def test_a_router_that_is_called_twice_is_refused() -> None:
    model = Toy()
    model.blocks.append(model.blocks[0])
    ids = sequences()
    once = Pass(model, routers(model)[:LAYERS], ids, [None] * 4, plan_of(), 2, None)
    with pytest.raises(UnsupportedArchitectureError, match="more than once"):
        once.run()


def test_an_error_of_moegeo_is_not_taken_for_one_of_the_model() -> None:
    model = Toy()

    def fail(x: torch.Tensor) -> torch.Tensor:
        raise ResourceError("the disk is full")

    model.disturb = fail  # type: ignore[method-assign]
    with pytest.raises(ResourceError, match="the disk is full"):
        run(model, plan_of())
