"""Transformations leave outputs alone, on every architecture, or say that they do not apply."""

from __future__ import annotations

import pytest
import torch

from moegeo_cli.checkpoints.architecture import describe_architecture
from moegeo_cli.commands.invariance.residual import NotApplicable
from moegeo_cli.commands.invariance.transformations import TRANSFORMATIONS
from moegeo_cli.routers.finding import find_routers
from tests.tiny_models import CONFIGS, build_tiny

# DeepSeek's groups see a constant on the selection bias; the others allow everything.
EXCEPTIONS = {("deepseek_v3", "logit-constant"), ("glm4_moe", "logit-constant")}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.parametrize("model_type", sorted(CONFIGS))
def test_outputs_stay_and_weights_change(model_type: str, name: str) -> None:
    model = build_tiny(model_type, 2)
    about = describe_architecture(model.config.to_dict())
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before = model(ids).logits
        weights = [r.weight_ED.clone() for r in find_routers(model)]
        arguments = (model, find_routers(model), about.scoring, about.selection.groups, 0)
        if (model_type, name) in EXCEPTIONS:
            with pytest.raises(
                NotApplicable, match="the constant would change which groups are chosen"
            ):
                TRANSFORMATIONS[name](*arguments)
            return
        TRANSFORMATIONS[name](*arguments)
        after = model(ids).logits
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    changed = [r.weight_ED for r in find_routers(model)]
    assert any(not torch.equal(a, b) for a, b in zip(weights, changed, strict=True))


def test_a_constant_moves_a_selection_bias_without_groups() -> None:
    model = build_tiny("glm4_moe", 2, n_group=1, topk_group=1)
    ids = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        before = model(ids).logits
        TRANSFORMATIONS["logit-constant"](model, find_routers(model), "sigmoid", None, 0)
        after = model(ids).logits
    assert torch.equal(before, after)


def test_an_unknown_parameter_is_not_passed_over() -> None:
    model = build_tiny("mixtral", 2)
    model.model.layers[0].adapter = torch.nn.Linear(24, 24)
    with pytest.raises(NotApplicable, match="adapter"):
        TRANSFORMATIONS["residual-rotation"](model, find_routers(model), "softmax", None, 0)
