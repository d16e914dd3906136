"""Samples of experts' weights: the same places of every expert, however a model keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moegeo_cli.checkpoints.checkpoint import Checkpoint
from moegeo_cli.commands.routing import expert_samples
from moegeo_cli.commands.routing.expert_samples import (
    NO_EXPERTS,
    ExpertSample,
    find_expert_weights,
    sample_weights,
)
from moegeo_cli.models.sources import StreamedModels
from moegeo_cli.routers.finding import find_routers
from tests.architectures.zoo import tiny_config
from tests.tiny_models import build_tiny


def build(model_type: str) -> Any:
    from transformers import AutoModelForCausalLM

    if model_type in {"mixtral", "gpt_oss", "qwen3_moe"}:
        return build_tiny(model_type)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(tiny_config(model_type)).float().eval()


def samples(model: Any) -> list[ExpertSample]:
    found = []
    for router in find_routers(model):
        weights = find_expert_weights(model, router)
        assert not isinstance(weights, str), weights
        assert weights.experts == router.experts
        found.append(sample_weights(weights))
    return found


@pytest.mark.parametrize(
    "model_type", ["mixtral", "gpt_oss", "qwen3_moe", "dbrx", "jetmoe", "nemotron_h", "aria_text"]
)
def test_a_changed_expert_changes_its_own_row(model_type: str) -> None:
    model = build(model_type)
    before = samples(model)
    router = find_routers(model)[-1]
    weights = find_expert_weights(model, router)
    assert not isinstance(weights, str)
    with torch.no_grad():
        for part in weights.of(1):
            part += 1.0
    after = samples(model)
    for one, other in zip(before, after, strict=True):
        changed = (one.weights_EW != other.weights_EW).any(axis=1)
        last = other is after[-1]
        assert changed.tolist() == [last and e == 1 for e in range(len(changed))]
        assert one.shapes == other.shapes
        assert one.weights_EW.shape[1] == sum(int(np.prod(s)) for s in one.shapes)


def test_places_are_drawn_from_shapes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = samples(build_tiny("mixtral"))
    monkeypatch.setattr(expert_samples, "SAMPLED_WEIGHTS", 100)
    for one, other in zip(whole, samples(build_tiny("mixtral")), strict=True):
        assert other.weights_EW.shape == (6, 100)
        places = np.searchsorted(np.sort(one.weights_EW[0]), other.weights_EW[0])
        np.testing.assert_array_equal(np.sort(one.weights_EW[0])[places], other.weights_EW[0])
    again = samples(build_tiny("mixtral", 1))
    shift = build_tiny("mixtral", 1)
    with torch.no_grad():
        for parameter in shift.parameters():
            parameter *= 2.0
    for one, other in zip(again, samples(shift), strict=True):
        np.testing.assert_array_equal(2 * one.weights_EW, other.weights_EW)


def test_streamed_experts_are_those_in_memory(tmp_path: Path) -> None:
    for model_type in ("mixtral", "qwen3_moe"):
        model = build_tiny(model_type)
        model.save_pretrained(tmp_path / model_type)
        source = StreamedModels(torch.device("cpu"), torch.float32, [8, 8], None, lambda _: 0)
        streamed = source.load(Checkpoint(tmp_path / model_type))
        for router, expected in zip(find_routers(streamed), samples(model), strict=True):
            weights = find_expert_weights(streamed, router)
            assert not isinstance(weights, str)
            with source.holding(router.path):
                found = sample_weights(weights)
            np.testing.assert_array_equal(found.weights_EW, expected.weights_EW)
            assert found.shapes == expected.shapes


def test_a_gate_with_nothing_beside_it() -> None:
    model = build_tiny("mixtral")
    for router in find_routers(model):
        router.parent.experts = None
        assert find_expert_weights(model, router) == NO_EXPERTS
