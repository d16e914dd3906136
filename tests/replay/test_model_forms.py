"""What the replay asks of a model, and what is said of a choice that was computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moegeo_cli.expert_functions.blocks import ExpertBlock
from moegeo_cli.probes import Sample
from moegeo_cli.replay.forms import (
    ModelAdapter,
    OfTransformers,
    describe_choice,
    first_two,
    form_of,
)
from moegeo_cli.routers.finding import Router
from tests.traces import trace_of

CPU = torch.device("cpu")


class Adapter(ModelAdapter):
    @property
    def body(self) -> nn.Module | None:
        return None

    def find_routers(self) -> list[Router]:
        return []

    def find_experts(self, routers: Any, inputs: Any) -> Mapping[str, ExpertBlock | None]:
        return {}

    def prepare(self, routers: Any, inputs: Any) -> None: ...


def test_an_adapter_is_its_own_form_and_runs_to_its_end() -> None:
    adapter = Adapter()
    assert form_of(adapter) is adapter
    assert adapter.runs_to_end
    assert not adapter.mixes_lengths


@pytest.mark.parametrize("stateful", [False, True])
def test_a_model_of_transformers_mixes_lengths_unless_it_carries_a_state(stateful: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), *([nn.Conv1d(2, 2, 2)] if stateful else []))
    form = form_of(model)
    assert isinstance(form, OfTransformers)
    assert (form.body, form.stateful, form.mixes_lengths) == (model, stateful, not stateful)
    assert not form.runs_to_end


def test_computed_choices_are_said_with_what_the_gradient_tells() -> None:
    told = [(True, False), (False, True), (False, False)]
    traces = [
        dataclasses.replace(trace_of(layer, layer), observed=observed, confirmed=confirmed)
        for layer, (observed, confirmed) in enumerate(told)
    ]
    for trace in traces:
        trace.router = dataclasses.replace(trace.router, choice_scoring="sigmoid")
    assert describe_choice(traces[:1], held=True) == []
    [words] = describe_choice(traces[:2], held=True)
    assert "choice of 1 of 2 routers was computed as the top 2 of their sigmoid scores" in words
    assert words.endswith("reaches these experts and no others")
    [words] = describe_choice(traces, held=True)
    assert "2 of 3 routers" in words
    assert words.endswith("confirms it for 1")
    [words] = describe_choice(traces, held=False)
    assert words.endswith("no loss was taken that could confirm it")
    traces[1].problem = traces[2].problem = "not called"
    assert describe_choice(traces, held=True) == []


def test_two_of_one_shape_are_found_and_floats_get_the_models_dtype() -> None:
    ids = [np.arange(3), np.arange(4), np.arange(10, 13)]
    one, other = first_two(ids, CPU, torch.float32)
    assert one["input_ids"].tolist() == [[0, 1, 2]]
    assert other["input_ids"].tolist() == [[10, 11, 12]]
    assert first_two(ids[:2], CPU, torch.float32) == []
    images = [Sample({"pixels": np.ones((2, 2), dtype=np.float32)}, 4) for _ in range(2)]
    found = first_two(images, CPU, torch.bfloat16)
    assert [batch["pixels"].dtype for batch in found] == [torch.bfloat16] * 2
