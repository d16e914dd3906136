"""A user's module as the replay calls it: its inputs, its logits, and whether samples may share."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moegeo_cli.errors import UnsupportedArchitectureError
from moegeo_cli.models.own_adapter import ALONE, OwnModel
from tests.own_models.models import VOCABULARY, Batched, Causal, LastOnly, spread

IDS = torch.arange(6).reshape(2, 3)


def adapt(inner: nn.Module) -> OwnModel:
    return OwnModel(inner, "blocks.*.gate", 2, "softmax")


class Plain(nn.Module):
    """Logits of every position in a form of the test's."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.embed, self.form = nn.Embedding(VOCABULARY, VOCABULARY), form

    def forward(self, ids: torch.Tensor) -> Any:
        return self.form(self.embed(ids))


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: logits,
        lambda logits: (logits, None),
        lambda logits: [logits],
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: (SimpleNamespace(logits=logits), 3),
    ],
)
def test_logits_are_read_in_every_form_of_the_contract(form: Any) -> None:
    model = adapt(Plain(form))
    assert torch.equal(model(input_ids=IDS).logits, model.inner.embed(IDS))


@pytest.mark.parametrize("form", [lambda y: None, lambda y: {"scores": y}, lambda y: ()])
def test_an_output_without_logits_is_refused(form: Any) -> None:
    with pytest.raises(UnsupportedArchitectureError, match="returns no logits"):
        adapt(Plain(form))(input_ids=IDS)


def test_logits_of_the_last_position_alone_are_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="logits of every position") as caught:
        adapt(LastOnly())(input_ids=IDS)
    assert "(2, 1, 32) for input_ids (2, 3)" in str(caught.value.found)


class Asks(Plain):
    """Takes ids by name, and needs a mask."""

    def forward(self, x: Any = None, *, input_ids: torch.Tensor, attention_mask: Any) -> Any:
        assert x is None
        assert torch.equal(attention_mask, torch.ones_like(input_ids))
        return self.embed(input_ids)


class Keywords(Plain):
    """Takes whatever is given by name."""

    def forward(self, **inputs: torch.Tensor) -> Any:
        assert set(inputs) == {"input_ids"}
        return self.embed(inputs["input_ids"])


@pytest.mark.parametrize("kind", [Asks, Keywords])
def test_ids_are_given_by_name_where_the_forward_takes_that_name(kind: type[Plain]) -> None:
    assert adapt(kind(None))(input_ids=IDS).logits.shape == (2, 3, VOCABULARY)


class Pixels(nn.Module):
    """No ids: two tensors by their names, logits of a class."""

    def forward(self, pixels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return pixels * scale


def test_samples_are_given_by_their_names() -> None:
    found = adapt(Pixels())(scale=torch.tensor(2.0), pixels=torch.ones(1, 4)).logits
    assert found.tolist() == [[2.0] * 4]


def test_leaving_the_process_is_an_error_and_an_interrupt_is_not() -> None:
    def leave(logits: Any) -> None:
        sys.exit(3)

    def interrupt(logits: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        adapt(Plain(leave))(input_ids=IDS)
    model = adapt(Plain(interrupt))
    with pytest.raises(KeyboardInterrupt):
        model(input_ids=IDS)


@pytest.mark.parametrize(("kind", "alone"), [(Causal, False), (Batched, True)])
def test_samples_that_influence_each_other_are_replayed_alone(
    kind: type[nn.Module], alone: bool
) -> None:
    model = adapt(spread(kind(), 0).eval())
    ids = [np.arange(4), np.arange(5), np.arange(3, 7)]
    for _ in range(2):
        model.prepare(model.find_routers(), ids)
    assert model.alone is alone
    assert model.notes == ([ALONE] if alone else []), "said once"


def test_a_single_sample_of_each_shape_needs_no_check() -> None:
    model = adapt(Batched())
    model.prepare(model.find_routers(), [np.arange(4), np.arange(5)])
    assert not model.alone


def test_a_forward_that_fails_while_samples_are_compared_says_what_it_was_given() -> None:
    class Fails(Causal):
        def forward(self, idx: torch.Tensor) -> Any:
            raise ValueError("no")

    model = adapt(Fails())
    with pytest.raises(UnsupportedArchitectureError, match="the model's own code") as caught:
        model.prepare(model.find_routers(), [np.arange(4), np.arange(4)])
    assert caught.value.found == "ValueError: no"
    assert "input_ids" in str(caught.value.hint)


def test_a_copy_shares_nothing_and_drops_graphs_that_modules_keep() -> None:
    model = adapt(Causal())
    model.inner.last = model(input_ids=IDS).logits  # a tensor with a graph cannot be copied
    other = copy.deepcopy(model)
    assert torch.equal(other.inner.last, model.inner.last)
    with torch.no_grad():
        other.inner.head.weight.zero_()
    assert bool(model.inner.head.weight.any())
